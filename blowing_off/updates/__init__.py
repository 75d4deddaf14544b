"""Keeping this program current: is the server content with it, is there a newer release, and how to move to it.

Two questions are kept apart. *Compatibility*: what a server said of itself (`check`), believed for a sentence to a
person and never for what is installed. *Availability*: what the channel that this program was installed from delivers
now (`channel`). What follows from both is `decide`. These, and `layout`, are pure. `install` moves from one release to
the next and back, `selftest` is how a release shows that it can be trusted with a store, and `manager` puts all of it
together. Nothing here runs before a sync has ended.
"""
