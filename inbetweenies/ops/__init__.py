"""The operator's verbs: what is done to a server's files, and what `inbetweenies.rollout` decides, done with a store,
threads and clocks.

Of files read `backup`, then `verify`, then `restore`, then `portable`; of rollouts `flags`, then `canary`, `rollouts`,
`performance` and `triggers`; of what comes before one `baseline`, then `checklist`, then `preflight`; of what is
watched meanwhile `integrity`, then `shadow`. Importing this loads none of them.
"""
