"""The operator's verbs: what is done to a server's files, beside what the server does.

Read `backup`, then `verify`, then `restore`. Importing this loads none of them.
"""
