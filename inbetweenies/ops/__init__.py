"""The operator's verbs: what is done to a server's files, and what `inbetweenies.rollout` decides, done with a store,
threads and clocks.

Of files read `backup`, then `verify`, then `restore`; of rollouts `flags`, then `canary`, `performance` and
`triggers`. Importing this loads none of them.
"""
