"""Where the server answers another thing than the recorded one, on purpose, and why.

Per recording: the aspect of the answer (see `replay`) and the reason. `EVERYWHERE` is for aspects in which answers
differ wherever they have them. A difference that is not listed fails, and so does an entry that nothing needs.
"""

from __future__ import annotations

from typing import Final

Reasons = dict[str, dict[str, str]]

EVERYWHERE: Final[Reasons] = {
    "v1": {"created_at": "the edit time of the first row, whatever a client says later"},
    "v2": {
        "edges": "edges are told with the entity they leave; deployed servers tell none, deployed clients skip them",
        "rest": "who pushes is told what it named and what is new to it; deployed servers repeat the whole graph",
    },
}

_UNDERSTOOD: Final = "a refusal there; here it is understood, as a deployed client means it"
_UNKNOWN_TYPE: Final = "types and sources that are unknown or in upper case are taken, and fail nobody's whole batch"
_TAKEN: Final = "an update that was taken is `applied` and no conflict, so that the client stops pushing it"
_LOST: Final = "what lost is kept, told as a conflict and `applied`, so that the client stops pushing it"
_MERGED: Final = "both edits descend from one row, so they are merged by field; the merge is a row of its own"
_BACK: Final = "it came before and was superseded since; nothing is lost, so there is no conflict to report"
_NO_TIME: Final = "a version that names no time was made when it arrived, which here is before the other's edit"
_NOT_CUT: Final = "a client that never asked for pages gets everything at once and no cursor"
_NUMBER: Final = "a cursor is honoured, whatever the kind of sync"
_OTHER_LOG: Final = "a `since` ahead of all that was ever written is of another history, and taken as absent"
_TO_THE_LETTER: Final = "rows are stored as they were written, `parent_versions` too"
_DELETE_LOST: Final = "a delete wins over what it did not know; that is told as a conflict"
_TOMBSTONE: Final = "only an edit that names the tombstone brings an entity back"
_ADDED: Final = "what the deployed server refused before is there"
_SAYS_WHY: Final = "what cannot be stored is listed with the reason; deployed clients skip the list"
_KEPT_AS_WRITTEN: Final = "`checksum` is kept and told"
_NO_ENDPOINT: Final = "no client that was deployed calls it"

V2: Final[Reasons] = {
    "02-root": dict.fromkeys(("name", "version"), "it is another server"),
    "08-sync-no-trailing-slash": {"status": "the address without the slash is served instead of redirected"},
    "25-delta-filter-unknown-entity_type": {"status": "500 there; here there is nothing of that type"},
    "28-conflict-remote-loses-older": dict.fromkeys(("resolved_version", "version"), _MERGED),
    "29-conflict-remote-wins-newer": dict.fromkeys(("resolved_version", "version"), _MERGED),
    "30-conflict-tiebreak-within-1s-remote-greater": dict.fromkeys(("resolved_version", "version"), _MERGED),
    "31-conflict-tiebreak-within-1s-remote-lesser": dict.fromkeys(("resolved_version", "version"), _MERGED),
    "32-conflict-blind-overwrite-no-parents": {"parent_versions": _TO_THE_LETTER},
    "33-conflict-nonstandard-version-string": dict.fromkeys(("resolved_version", "version"), _NO_TIME),
    "38-resend-superseded-version": {"conflicts": _BACK},
    "39-resend-superseded-future-version": {"conflicts": _BACK},
    "40-graph-entity-versions-rest": {"more": _MERGED},
    "41-same-version-different-content": {"conflicts": "other content under a version that is taken is kept beside it"},
    "43-two-versions-one-batch-child-first": {"conflicts": "parents are taken before children, whatever their order"},
    "44-relationship-missing-endpoint": {"refused": _SAYS_WHY},
    "45-relationship-endpoint-arrives-later": {"more": _OTHER_LOG},
    "49-relationship-unknown-type": {"status": _UNKNOWN_TYPE},
    "50-relationship-type-uppercase": {"status": _UNKNOWN_TYPE},
    "51-graph-relationships-rest": {"more": _ADDED},
    "52-full-after-relationships": {"more": _ADDED},
    "54-full-after-delete": {"more": _ADDED},
    "55-delete-again-already-tombstoned": {"version": "a tombstone that follows another one is a row like any other"},
    "58-delete-with-stale-parent": {"conflicts": _DELETE_LOST, "parent_versions": _TO_THE_LETTER},
    "59-delete-older-timestamp": {"conflicts": _DELETE_LOST, "parent_versions": _TO_THE_LETTER},
    "60-resurrect-tombstone-fast-forward": {"parent_versions": "the tombstone that it names is the second one (55)"},
    "61-resurrect-tombstone-no-parent": dict.fromkeys(("resolved_version", "version"), _TOMBSTONE),
    "73-unknown-protocol_version": {"status": "an unknown version that writes nothing is answered in v1"},
    "74-missing-protocol_version": {"keys": "a message without a version is one of v1; v2 clients name theirs"},
    "77-unknown-entity_type": {"status": _UNKNOWN_TYPE},
    "78-uppercase-entity_type": {"status": _UNKNOWN_TYPE},
    "79-unknown-source_type": {"status": _UNKNOWN_TYPE},
    "80-batch-one-bad-of-two": {"status": _UNKNOWN_TYPE},
    "81-extra-unknown-fields": {"checksum": _KEPT_AS_WRITTEN},
    "82-empty-id-and-version": dict.fromkeys(("applied", "refused"), "an id and a version name something: not empty"),
    "85-cursor-ok": {
        "checksum": _KEPT_AS_WRITTEN,
        "fewer": "an empty id was refused (82)",
        "more": _ADDED,
        "parent_versions": _TO_THE_LETTER,
        "version": _TOMBSTONE,
    },
    "86-cursor-with-full-ignored": {
        "checksum": _KEPT_AS_WRITTEN,
        "fewer": "an empty id was refused (82)",
        "more": _ADDED,
        "parent_versions": _TO_THE_LETTER,
        "version": _TOMBSTONE,
    },
    "87-huge-body-5MB": {"more": _OTHER_LOG},
    "89-page1-full-over-500": {"cursor": _NOT_CUT},
    "90-page2-full-with-cursor-restarts": {"cursor": _NOT_CUT, "fewer": _NUMBER},
    "91-page2-delta-with-cursor": {"cursor": _NOT_CUT},
    "92-page2-delta-with-cursor-and-since": {"cursor": _NOT_CUT},
    "93-page-filter-applied-before-paging": {"parent_versions": _TO_THE_LETTER, "version": _TOMBSTONE},
    "95-v1-request-endpoint-on-v2": {"status": "this server speaks v1 too"},
    "96-nan-in-content": {"status": "NaN is no JSON; the deployed server makes null of it, which nobody wrote"},
}

_NOT_ACKED: Final = "`last_sync` is the client's own clock, so all that it never acknowledged is told again"
_NESTED: Final = "services are part of their device, and are served to who asks for them"
_RISES: Final = "a row that follows another one is newer, by a microsecond where its time is not"
_DELETED: Final = "deletes work, and who may hold the record is told; the deployed server swallows them"
_NO_HOME: Final = "its home is deleted: another one stands in, where there is one"
_NULL_SYNC_ID: Final = "a null `sync_id` names nothing; the deployed server takes two such homes for one"
_DEFECT: Final = "the deployed server drops it without a word"

V1: Final[Reasons] = {
    "03-request-no-auth": {"status": "who sends no token is nobody; deployed clients always send one"},
    "08-push-create-service": {"applied": _NESTED},
    "09-push-create-characteristic": {"applied": _NESTED},
    "10-push-unknown-entity_type": {"refused": _SAYS_WHY},
    "11-push-plural-entity_type": {"applied": _UNDERSTOOD},
    "12-request-full-after-create": {"updated_at": _NESTED},
    "13-request-since": {"more": _NOT_ACKED},
    "14-request-since-future-nothing": {"more": _NOT_ACKED},
    "15-request-since-aware-offset": {"status": _UNDERSTOOD},
    "16-request-since-Z": {"status": _UNDERSTOOD},
    "17-request-since-aware-nothing-changed": {"more": _NOT_ACKED},
    "18-request-services-requested": {"more": _NESTED},
    "19-request-default-entity_types": {"more": "who does not say what it asks for gets all that is usual in v1"},
    "20-push-update-newer": {"applied": _TAKEN, "conflicts": _TAKEN},
    "21-request-since-after-update": {"more": _NOT_ACKED, "updated_at": _NESTED},
    "22-push-update-older-loses": {"applied": _LOST},
    "23-push-update-tie-lower-sync_id": {"applied": _LOST},
    "24-push-update-tie-higher-sync_id": {"applied": _LOST},
    "25-push-idempotent-resend": {"applied": _TAKEN, "conflicts": _TAKEN},
    "26-push-update-home": {"applied": _TAKEN, "conflicts": _TAKEN},
    "27-push-update-accessory": {"applied": _TAKEN, "conflicts": _TAKEN},
    "28-push-update-user": {"applied": _TAKEN, "conflicts": _TAKEN},
    "29-push-delete-accessory": {"applied": _DELETED},
    "30-push-delete-user": {"applied": _DELETED},
    "31-push-delete-room": {
        "applied": _DELETED,
        "conflicts": "its client knows its own last edit (24), not the merge that this became part of; the delete wins",
    },
    "32-push-delete-home": {"applied": _DELETED},
    "33-push-delete-unknown-id": {"applied": _DELETED},
    "34-request-after-delete": {"home_id": _NO_HOME, "operation": _DELETED, "updated_at": _RISES},
    "36-push-null-sync_id-second": {"applied": _NULL_SYNC_ID, "conflicts": _NULL_SYNC_ID},
    "37-request-after-null-sync_id": {
        "more": _NULL_SYNC_ID,
        "name": _NULL_SYNC_ID,
        "operation": _DELETED,
        "updated_at": _RISES,
    },
    "38-push-missing-sync_id": {"applied": _DEFECT},
    "39-push-unknown-field-in-data": {"applied": _DEFECT},
    "40-push-room-with-unknown-home": dict.fromkeys(("applied", "refused"), "a room whose home is not here yet waits"),
    "42-push-mixed-good-bad": {"refused": _SAYS_WHY},
    "48-request-bad-last_sync": {"status": "500 there; a time that is none is refused in words"},
    "49-request-missing-client_id": {"status": _UNDERSTOOD},
    "50-request-wrong-type-field": {
        "home_id": _NO_HOME,
        "more": _DEFECT,
        "name": _NULL_SYNC_ID,
        "operation": _DELETED,
        "updated_at": _RISES,
    },
    "52-ack-missing-field": {"status": _UNDERSTOOD},
    "54-bulk-sync-endpoint": {"status": f"{_NO_ENDPOINT}; it is refused, since to ignore the records would lose them"},
    "55-changes-endpoint": {"status": _NO_ENDPOINT},
    "57-request-since-over-100": {
        "home_id": _NO_HOME,
        "more": "the deployed server tells 100 of each type and forgets the rest",
        "name": _NULL_SYNC_ID,
        "operation": _DELETED,
        "updated_at": _RISES,
    },
}

#: Recordings of other endpoints than sync, auth, graph and what tells that the server is there: they get a 404.
ELSEWHERE: Final[dict[str, dict[str, str]]] = {
    "v1": {
        "62-demo-rest-accessories": "an HTTP interface to accessories, which the v1 client does not use to sync",
        "63-demo-rest-services": "an HTTP interface to services; sync serves those that are asked for",
        "64-demo-rest-characteristics": "an HTTP interface to characteristics; sync serves those that are asked for",
    },
    "v2": {},
}

#: What the deployed servers have beside that, and no deployed client calls when it syncs: it gets a 404 as well.
ABSENT: Final = {
    ("POST", "/api/v1/auth/refresh"): "no client asks for it when its token has expired; each logs in when it starts",
    ("POST", "/api/v1/auth/guest/verify"): "KittenKong sends a field that the deployed server refuses, too",
    ("POST", "/api/v1/auth/guest/generate-qr"): "guests are invited with `inbetweenies token create`",
    ("GET", "/api/v1/auth/guest/list"): "see `inbetweenies token list`",
    ("POST", "/api/v1/auth/guest/revoke"): "see `inbetweenies token revoke`",
    ("GET", "/api/v1/sync/changes"): _NO_ENDPOINT,
}
