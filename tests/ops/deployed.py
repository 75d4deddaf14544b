"""Databases as deployed servers make them: their schemas, and rows put in by hand."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import SHARED

#: Where two databases are that deployed servers have written; `real` marks the tests that need them.
REAL: Final = SHARED / "deployed"
real: Final = pytest.mark.usefixtures("shared_data")

HOMEKIT: Final = """
CREATE TABLE homes (id VARCHAR(36) NOT NULL, name VARCHAR(255) NOT NULL, is_primary BOOLEAN NOT NULL, created_at
    DATETIME NOT NULL, updated_at DATETIME NOT NULL, sync_id VARCHAR(36), PRIMARY KEY (id));
CREATE TABLE sync_metadata (id INTEGER NOT NULL, client_id VARCHAR(50) NOT NULL, last_sync_time DATETIME,
    last_sync_success DATETIME, last_sync_error TEXT, sync_failures INTEGER NOT NULL, total_syncs INTEGER NOT NULL,
    total_conflicts INTEGER NOT NULL, server_url VARCHAR(255), auth_token VARCHAR(500), sync_in_progress INTEGER,
    next_retry_time DATETIME, created_at DATETIME NOT NULL, updated_at DATETIME NOT NULL, sync_id VARCHAR(36),
    PRIMARY KEY (id), UNIQUE (client_id));
CREATE TABLE rooms (id VARCHAR(36) NOT NULL, home_id VARCHAR(36) NOT NULL, name VARCHAR(255) NOT NULL, created_at
    DATETIME NOT NULL, updated_at DATETIME NOT NULL, sync_id VARCHAR(36), PRIMARY KEY (id), FOREIGN KEY(home_id)
    REFERENCES homes (id));
CREATE TABLE accessories (id VARCHAR(36) NOT NULL, home_id VARCHAR(36) NOT NULL, name VARCHAR(255) NOT NULL,
    manufacturer VARCHAR(255), model VARCHAR(255), serial_number VARCHAR(255), firmware_version VARCHAR(50),
    is_reachable BOOLEAN NOT NULL, is_blocked BOOLEAN NOT NULL, is_bridge BOOLEAN NOT NULL, bridge_id VARCHAR(36),
    created_at DATETIME NOT NULL, updated_at DATETIME NOT NULL, sync_id VARCHAR(36), PRIMARY KEY (id), FOREIGN
    KEY(home_id) REFERENCES homes (id), FOREIGN KEY(bridge_id) REFERENCES accessories (id));
CREATE TABLE users (id VARCHAR(36) NOT NULL, home_id VARCHAR(36) NOT NULL, name VARCHAR(255) NOT NULL,
    is_administrator BOOLEAN NOT NULL, is_owner BOOLEAN NOT NULL, remote_access_allowed BOOLEAN NOT NULL, created_at
    DATETIME NOT NULL, updated_at DATETIME NOT NULL, sync_id VARCHAR(36), PRIMARY KEY (id), FOREIGN KEY(home_id)
    REFERENCES homes (id));
CREATE TABLE accessory_rooms (accessory_id VARCHAR(36) NOT NULL, room_id VARCHAR(36) NOT NULL, PRIMARY KEY
    (accessory_id, room_id), FOREIGN KEY(accessory_id) REFERENCES accessories (id), FOREIGN KEY(room_id) REFERENCES
    rooms (id));
CREATE TABLE services (id VARCHAR(36) NOT NULL, accessory_id VARCHAR(36) NOT NULL, service_type VARCHAR(100) NOT
    NULL, name VARCHAR(255) NOT NULL, is_primary BOOLEAN NOT NULL, is_user_interactive BOOLEAN NOT NULL, created_at
    DATETIME NOT NULL, updated_at DATETIME NOT NULL, sync_id VARCHAR(36), PRIMARY KEY (id), FOREIGN
    KEY(accessory_id) REFERENCES accessories (id));
CREATE TABLE characteristics (id VARCHAR(36) NOT NULL, service_id VARCHAR(36) NOT NULL, characteristic_type
    VARCHAR(100) NOT NULL, value TEXT, format VARCHAR(50), unit VARCHAR(50), min_value FLOAT, max_value FLOAT,
    step_value FLOAT, is_readable BOOLEAN NOT NULL, is_writable BOOLEAN NOT NULL, supports_event_notification
    BOOLEAN NOT NULL, created_at DATETIME NOT NULL, updated_at DATETIME NOT NULL, sync_id VARCHAR(36), PRIMARY KEY
    (id), FOREIGN KEY(service_id) REFERENCES services (id));
"""

GRAPH: Final = """
CREATE TABLE sync_metadata (id INTEGER NOT NULL, client_id VARCHAR(50) NOT NULL, last_sync_time DATETIME,
    last_sync_success DATETIME, last_sync_error TEXT, sync_failures INTEGER NOT NULL, total_syncs INTEGER NOT NULL,
    total_conflicts INTEGER NOT NULL, server_url VARCHAR(255), auth_token VARCHAR(500), sync_in_progress INTEGER,
    next_retry_time DATETIME, created_at DATETIME NOT NULL, updated_at DATETIME NOT NULL, sync_id VARCHAR(36),
    PRIMARY KEY (id), UNIQUE (client_id));
CREATE TABLE entities (id VARCHAR(36) NOT NULL, version VARCHAR(255) NOT NULL, entity_type VARCHAR(10) NOT NULL,
    name VARCHAR(255) NOT NULL, content JSON NOT NULL, source_type VARCHAR(9) NOT NULL, user_id VARCHAR(36),
    parent_versions JSON, is_latest BOOLEAN DEFAULT 1 NOT NULL, server_seq INTEGER, created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL, sync_id VARCHAR(36), PRIMARY KEY (id, version));
CREATE TABLE blobs (id VARCHAR(36) NOT NULL, name VARCHAR(255) NOT NULL, blob_type VARCHAR(8) NOT NULL, mime_type
    VARCHAR(100), size INTEGER NOT NULL, data BLOB, blob_metadata JSON, checksum VARCHAR(64), sync_status
    VARCHAR(16) NOT NULL, server_url VARCHAR(500), last_sync_at DATETIME, user_id VARCHAR(36), summary
    VARCHAR(2000), created_at DATETIME NOT NULL, updated_at DATETIME NOT NULL, sync_id VARCHAR(36), PRIMARY KEY
    (id));
CREATE TABLE entity_relationships (id VARCHAR(36) NOT NULL, from_entity_id VARCHAR(36) NOT NULL, from_entity_version
    VARCHAR(255) NOT NULL, to_entity_id VARCHAR(36) NOT NULL, to_entity_version VARCHAR(255) NOT NULL,
    relationship_type VARCHAR(17) NOT NULL, properties JSON, user_id VARCHAR(36), created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL, sync_id VARCHAR(36), PRIMARY KEY (id), CONSTRAINT fk_from_entity FOREIGN
    KEY(from_entity_id, from_entity_version) REFERENCES entities (id, version), CONSTRAINT fk_to_entity FOREIGN
    KEY(to_entity_id, to_entity_version) REFERENCES entities (id, version));
CREATE INDEX ix_entities_id_version ON entities (id, version);
CREATE INDEX ix_entities_entity_type ON entities (entity_type);
CREATE INDEX ix_entities_server_seq ON entities (server_seq);
CREATE INDEX ix_entities_is_latest_server_seq ON entities (is_latest, server_seq);
CREATE INDEX ix_blobs_blob_type ON blobs (blob_type);
CREATE INDEX ix_entity_relationships_relationship_type ON entity_relationships (relationship_type);
"""

WHEN: Final = "2026-11-23 01:39:31.916652"
LATER: Final = "2026-11-23 01:40:00.000000"


def made(path: Path, schema: str, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Path:
    """A database with these rows, each a table and its columns; what is not said of a row is as a server writes it."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.executescript(schema)
        for table, row in rows:
            put(db, table, row)
        db.commit()
    return path


def put(db: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> None:
    """Put a row in."""
    whole = {**PLAIN[table], **row}
    names = ", ".join(whole)
    marks = ", ".join("?" * len(whole))
    db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(whole.values()))


_TIMES: Final = {"created_at": WHEN, "updated_at": WHEN, "sync_id": None}
PLAIN: Final[dict[str, dict[str, Any]]] = {
    "homes": {"id": "h", "name": "Home", "is_primary": 1, **_TIMES},
    "rooms": {"id": "r", "home_id": "h", "name": "Room", **_TIMES},
    "accessories": {
        "id": "a",
        "home_id": "h",
        "name": "Lamp",
        "manufacturer": "Acme",
        "is_reachable": 1,
        "is_blocked": 0,
        "is_bridge": 0,
        "bridge_id": None,
        **_TIMES,
    },
    "users": {
        "id": "u",
        "home_id": "h",
        "name": "Ann",
        "is_administrator": 1,
        "is_owner": 0,
        "remote_access_allowed": 1,
        **_TIMES,
    },
    "accessory_rooms": {"accessory_id": "a", "room_id": "r"},
    "services": {
        "id": "s",
        "accessory_id": "a",
        "service_type": "lightbulb",
        "name": "Light",
        "is_primary": 1,
        "is_user_interactive": 1,
        **_TIMES,
    },
    "characteristics": {
        "id": "c",
        "service_id": "s",
        "characteristic_type": "power",
        "value": "true",
        "format": "bool",
        "min_value": None,
        "is_readable": 1,
        "is_writable": 1,
        "supports_event_notification": 0,
        **_TIMES,
    },
    "sync_metadata": {
        "id": 1,
        "client_id": "phone",
        "sync_failures": 0,
        "total_syncs": 3,
        "total_conflicts": 0,
        "created_at": WHEN,
        "updated_at": WHEN,
    },
    "entities": {
        "id": "e",
        "version": "2026-11-23T01:39:31.916652+00:00-000000-ann",
        "entity_type": "ROOM",
        "name": "Room",
        "content": "{}",
        "source_type": "MANUAL",
        "user_id": "ann",
        "parent_versions": "[]",
        "is_latest": 1,
        "server_seq": None,
        **_TIMES,
    },
    "entity_relationships": {
        "id": "x",
        "from_entity_id": "e",
        "from_entity_version": "2026-11-23T01:39:31.916652+00:00-000000-ann",
        "to_entity_id": "e",
        "to_entity_version": "2026-11-23T01:39:31.916652+00:00-000000-ann",
        "relationship_type": "PART_OF",
        "properties": "{}",
        "user_id": "ann",
        **_TIMES,
    },
    "blobs": {
        "id": "b",
        "name": "manual.pdf",
        "blob_type": "PDF",
        "mime_type": "application/pdf",
        "size": 3,
        "data": b"abc",
        "blob_metadata": json.dumps({"pages": 1}),
        "checksum": "c0ffee",
        "sync_status": "SYNCED",
        "user_id": "ann",
        **_TIMES,
    },
}
