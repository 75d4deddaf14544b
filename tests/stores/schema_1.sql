-- A file as the first release made it, with one row in it.
CREATE TABLE graphs (
    graph INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    epoch TEXT NOT NULL,
    seq INTEGER NOT NULL,
    chain BLOB NOT NULL,
    stamp INTEGER NOT NULL,
    digest BLOB NOT NULL
) STRICT;
CREATE TABLE log (
    graph INTEGER NOT NULL REFERENCES graphs,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    version TEXT NOT NULL,
    seq INTEGER NOT NULL,
    until INTEGER NOT NULL,
    stamp INTEGER NOT NULL,
    edit INTEGER NOT NULL,
    timed INTEGER NOT NULL,
    rise INTEGER NOT NULL,
    born INTEGER NOT NULL,
    deleted INTEGER NOT NULL,
    entity_type TEXT NOT NULL,
    user_id TEXT NOT NULL,
    from_id TEXT NOT NULL,
    to_id TEXT NOT NULL,
    hash BLOB NOT NULL,
    chain BLOB NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (graph, seq)
) STRICT;
CREATE UNIQUE INDEX log_version ON log (graph, kind, id, version);
CREATE UNIQUE INDEX log_until ON log (graph, kind, id, until);
CREATE INDEX log_from ON log (graph, from_id, until) WHERE kind = 'edge';
CREATE INDEX log_to ON log (graph, to_id, until) WHERE kind = 'edge';
CREATE INDEX log_type ON log (graph, entity_type, until) WHERE kind = 'entity';
CREATE INDEX log_current ON log (graph, seq) WHERE until = 9223372036854775807;
CREATE TABLE devices (
    graph INTEGER NOT NULL REFERENCES graphs,
    device TEXT NOT NULL,
    served INTEGER NOT NULL,
    acked INTEGER NOT NULL,
    mark TEXT NOT NULL,
    PRIMARY KEY (graph, device)
) STRICT, WITHOUT ROWID;
PRAGMA application_id = 1231970932;
PRAGMA user_version = 1;
INSERT INTO graphs VALUES (1, 'g', '0123456789abcdef', 1, x'6f0edbce080b4730c474f0ec8e9170ae', 7, x'd4df72bf04d7b92efab2c4a63e36049922a8ce0d8921bc7c0af0f70ccacfd2fa');
INSERT INTO log VALUES (1, 'entity', 'e1', 'v1', 1, 9223372036854775807, 7, 3, 0, 3, 3, 0, 'device', 'user', '', '', x'd4df72bf04d7b92efab2c4a63e36049922a8ce0d8921bc7c0af0f70ccacfd2fa', x'6f0edbce080b4730c474f0ec8e9170ae',
    x'7b226964223a226531222c2276657273696f6e223a227631222c22656e746974795f74797065223a22646576696365222c226e616d65223a226531222c22636f6e74656e74223a7b7d2c22736f757263655f74797065223a226d616e75616c222c22757365725f6964223a2275736572222c22706172656e745f76657273696f6e73223a5b5d2c22636865636b73756d223a6e756c6c7d');
INSERT INTO devices VALUES (1, 'phone', 1, 1, 'm');
