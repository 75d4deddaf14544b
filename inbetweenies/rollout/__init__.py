"""What is decided when a wire version or a feature is rolled out, watched and rolled back (PROTOCOL 12). Pure.

Start with `states`, which says where a rollout stands and what may happen to it; `canary` says whom it reaches,
`flags` which features are on, `health` and `triggers` whether it does harm, `integrity` whether a log is whole,
`shadow` whether each wire version shows what it must, `notices` what people are told of it, and `escalation` who is
called. What they decide upon is kept in documents of the store and changed by compare and set; what loops, measures or
calls is in the shells.
"""
