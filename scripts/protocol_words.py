"""What each frame and each operation means: the words of :mod:`scripts.protocol_page`."""

from __future__ import annotations

FRAMES: dict[str, tuple[str, str]] = {
    "hello": (
        "both ways, first",
        "`protocol`, `product`, `pid`; a supervisor adds `supervisor` (its id) and `mode`. With "
        "`refused` the body is an error and the connection ends",
    ),
    "request": (
        "client to supervisor; a session's child to supervisor",
        "`id`, `op`, and what the operation needs to be "
        "routed: `session`, `tree`, `serial`, `message_id`, `turn`, `spec`. Without an `id` nobody wants an answer",
    ),
    "reply": (
        "back",
        '`id`, `ok`; the body is the answer, or with `ok` false an error. `source: "log"` says that the '
        "child was silent and the body is the log's lines",
    ),
    "init": (
        "supervisor to child, once",
        "to the process of a function or a server `function` (its import name), and the body has `args`, `kwargs`, "
        "`env`, `cwd`, `python_path`, the supervisor's `socket`, its own `pid` and `name`; to a session's `session`, "
        "`incarnation`, why the last life ended (`reason`), whether that "
        "death counts against the open turn (`counted`), a turn to `interrupt`, how many events (`preload`) and "
        "messages (`follow`) come right behind. `needs_grants`: what is open waits, as the body has its first line "
        "only; "
        "`presented`: a client has given the start options again. `approvers`: for what somebody can answer permission "
        "requests, `true` or ids of messages; `remembered`: which answers hold. The body is the start request as the "
        "client sent it",
    ),
    "ready": (
        "child to supervisor",
        "from a server `server` (true) and, if `init` gave one, `info`: a session's has `seq` of the last event, "
        "`damage` found in the log, and the position: `turn`, `queue`, and `held` (true) while these wait for grants; "
        "in `asks` the permission requests that are open",
    ),
    "ignore": ("server to supervisor", "its `init` wants no server; the process ends, and that is no error"),
    "init_error": (
        "child to supervisor",
        "`reason`; a session's may be the error that `start` is answered with",
    ),
    "event": (
        "child to supervisor to subscribers",
        "`session`, `seq`, `uuid`, `event`, the position, and in `settled` the `message_id`s that it is the last word "
        "on; the body is the log's line, byte for byte",
    ),
    "settled": (
        "child to supervisor",
        "`messages`: ids of messages that came again and whose turns have ended before; nobody need keep them",
    ),
    "delta": (
        "child to supervisor to subscribers",
        "`session`, `turn`, `step`, `attempt`, `type` (`text` or `thinking`), "
        "`offset` in characters; the body is UTF-8 text. Not recorded, and left out where the reader is behind",
    ),
    "state": (
        "child to supervisor; supervisor to subscribers",
        "from a child: `degraded`, what is wrong or `null`. To subscribers: `state` and `reason` of the session, in "
        "its place between the events; of those that a slow one missed, the last",
    ),
    "remember": (
        "child to supervisor",
        "`rule`, `decision`: an answer to a permission request that holds for the rest of the session; for the next "
        "`init`, and for no file",
    ),
    "shutdown": (
        "supervisor to child",
        "`reason`: end in order; to a server that traps exits it is its supervisor's exit signal, behind what was sent "
        "before",
    ),
    "exiting": ("child to supervisor, last", "`reason`: why it is about to exit"),
    "call": (
        "supervisor to server",
        "`id`, and `from`, the pid of who asks; the body is the request. To a session it is a client's `request`, "
        "with `op` and its other words. The answer is a `reply` with that `id`, any time later, and only the first "
        "counts",
    ),
    "cast": (
        "supervisor to server",
        "the body is the message; to a session `hibernate`: end in order, as the session goes on without a process, or "
        "`go_on`: with what waits for grants, without them; or `approvers`, as in `init`, when they change",
    ),
    "info": (
        "supervisor to server",
        'for its `handle_info`: `{"exit": {"from", "reason", "over_link"}}`, '
        '`{"down": {"ref", "target", "pid", "reason"}}` or `{"message": ...}`; to a session, as a message, '
        "the answer to its `request`: `answer_to`, `ok`, `value`",
    ),
    "stop": ("supervisor to server", "`reason`: somebody stops it; it runs `terminate` and ends"),
    "trap_exit": (
        "server to supervisor",
        "`on`: whether exit signals are to come as messages; before `ready`, and whenever it changes. A function asks "
        "for it by the operation",
    ),
    "live": ("supervisor to subscriber", "`seq`: the replay has caught up; partial text of the running step follows"),
    "lagged": ("supervisor to subscriber", "`seq`: more than the byte bound was waiting; what follows is a replay"),
    "ended": (
        "supervisor to subscriber",
        "`reason`: the session is over and nothing follows; to one that is behind it comes after its replay. With "
        "`error` the stream ends before the session does, and the body says why: its log could not be read",
    ),
    "part": ("any", "`part`, `more`: the rest of a long body"),
}

OPERATIONS: dict[str, str] = {
    "start": "Start a session from `spec` and the body's options; answered when its child is ready. `approvers`: for "
    "what the client is about to subscribe as one. The body is two "
    "lines of JSON: what the supervisor may write down for the next one, and what it must not (grants, keys, the "
    "environment, first messages). For a session that came back without the second line, it presents it",
    "attach": "Who has this name, id or pid",
    "whereis": "The pid under a name or id, or `null`",
    "list": "Rows of live, failed and stored sessions, and of shared services",
    "status": "What is known of a session without asking its child",
    "subscribe": "Join after a cursor (`after`, `uuid`, `deltas`), maybe as an `approver`, of everything (`true`) or "
    "of a message's turn (its id); the answer says where the stream begins (`after`), "
    "and in `reset` that the log does not hold the cursor's event",
    "unsubscribe": "Leave",
    "restart": "Start a session that has failed again; answered when it is ready",
    "stop": "End a session (`reason`, `timeout`); answered when nothing of it is left. Twice is a no-op",
    "service": "The address of a shared program, started if need be",
    "info": "What this supervisor is and how it does; of a daemon also how many sessions it has `respawned` and `lost`",
    "shutdown": "End the supervisor with everything below it; `restart`: another one follows at once",
    "tree_start": "Start a supervision tree (`kind`, `flags`, `children`, `name`, `link`, `caller`; of a class its "
    "`spec`); answered when all of it has started, or wants nothing started",
    "tree_attach": "The supervisor that `tree` in the header names: a name, or a pid",
    "tree_stop": "End a supervisor (`reason`) with its children; answered when nothing of it is left",
    "trees": "Every tree as it is now, without asking its supervisors",
    "start_child": "Start one more child (`spec`)",
    "terminate_child": "End a child (`id` or `pid`)",
    "restart_child": "Start a child that does not run",
    "delete_child": "Forget a child that does not run",
    "get_childspec": "A child's specification, every default filled in",
    "which_child": "One child",
    "which_children": "All children, the newest first",
    "count_children": "How many: `specs`, `active`, `supervisors`, `workers`",
    "process_whereis": "The pid of a process, or `null`",
    "process_self": "The pid of who asks",
    "monitor": "Watch a process: one `down`; at once, with `noproc`, if it is not there. Answers `ref`, `pid` and "
    "`supervisor`; `asks`: the caller will `take` it, as who has no inbox does",
    "demonitor": "No `down` of this `ref` from now on, with `flush` not even one that was made; answers whether one "
    "was still to come (`was_armed`)",
    "link": "Tie the caller to a process; answers and `asks` as for `monitor`",
    "unlink": "Undo that",
    "exit": "Send an exit signal; the body is the reason",
    "trap_exit": "Have exit signals for the caller come as messages (`on`)",
    "process_send": "Send a plain message, the body",
    "call": "Ask a server; the body is the request, the answer is the server's",
    "give_up": "Nobody waits for the request `call` of this connection any more, a `call` or a `take`; no answer",
    "cast": "Tell a server; ok whether or not it is there",
    "process_stop": "End a server, a registry or a supervisor; the body is the reason. Answered when nothing of it is "
    "left",
    "start_server": "Start a server that no supervisor has (`spec`, `link`, `caller`)",
    "take": "Ask for the message of the monitor or link `ref` of `supervisor`, or for the next plain one. Answered "
    "when it is there, in the form of an `info` body, a plain one with its `number`; after `timeout` seconds with "
    '`{"timeout": true}`; with `{"gone": true}` if it was taken or will not come, `{"lost": true}` if it went with '
    "another supervisor",
    "confirm": "What was answered to the request `take` has arrived. What is not confirmed when its connection ends is "
    "there again; no answer",
    "registry_start": "Start a registry (`keys`, `name`, `listeners`, `meta`, `link`)",
    "registry_attach": "The registry that `registry` in the header names",
    "registry_stop": "End a registry (`reason`)",
    "registry_register": "Register the calling process under `key` with `value`",
    "registry_unregister": "Remove its entries under `key`",
    "registry_unregister_match": "Remove those whose value matches `pattern`",
    "registry_update": "Put `new` in the place of its value `old`; `done` is false if it is another by now",
    "registry_lookup": "Pids and values under `key`",
    "registry_keys": "The keys of a process (`pid`, or the caller)",
    "registry_values": "The values of a process (`pid`, or the caller) under `key`",
    "registry_count": "How many entries there are",
    "registry_match": "Pids and values under `key` whose value matches `pattern`",
    "registry_count_match": "How many those are",
    "registry_select": "Key, pid and value of all entries that match the patterns `key` and `value`, of one `pid` if "
    "given",
    "registry_put_meta": "Store `value` under `key`, for the registry itself",
    "registry_meta": "What is stored under `key`",
    "registry_delete_meta": "Remove what is stored under `key`",
    "registry_lock": "Wait for the lock of `key` (`ticket`, chosen by who asks); answered when it is held",
    "registry_unlock": "Give the lock of `key` back, or the wait for it up (`ticket`)",
    "send": "A message (`message_id`, `text`, `wait`, `options`): its acceptance, or with `wait` its turn's result",
    "result": "Wait for the result of a `message_id`",
    "cancel": "Take a queued message back",
    "interrupt": "End the running turn; `clear_queue` drops what waits",
    "answer": "Answer the permission request `request_id`: `decision` is `allow` or `deny`; `remember`, a `reason` for "
    "the model, and an `answer_id`, by which the same answer is known again. Answered when it has won and is on disk",
    "requests": "The permission requests that are open",
    "checkpoint": "Record the point that the session is at, under a `label`; its `seq` and `uuid`",
    "rewind": "Go back to a point (`to`: `seq` and `uuid`, or the `name` of a checkpoint or a message), with `files`; "
    "`id` makes it the same one when it is asked again",
    "fork": "Make the log of `session_id`, which goes on from a point (`at`, as for `rewind`; `null`: from here); "
    "where that log is",
    "messages": "The history",
    "usage": "Tokens and cost of the session",
    "queue": "What waits behind the running turn",
    "ping": "A sign of life",
}
