"""The commands of ``athena``: what each is called and takes. What they do is in the modules beside this one."""

from __future__ import annotations

from typing import Annotated

import typer

from athena.cli.border import EXIT_OK
from athena.cli.branching import checkpoint, fork, materialise, rewind
from athena.cli.flags import StartFlags, takes_start_flags
from athena.cli.lookup import complete_any, complete_live, complete_stored
from athena.cli.store import rm, store
from athena.config import VERSION

app = typer.Typer(
    help="LLM agent sessions as supervised processes that survive crashes and restarts.",
    pretty_exceptions_enable=False,
    no_args_is_help=False,
)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable: one JSON document, or one a line for streams.")]
Live = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="Name, session id or pid.", autocompletion=complete_live, show_default=False),
]
Any_ = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="Name, session id or pid.", autocompletion=complete_any, show_default=False),
]
Keep = Annotated[bool, typer.Option("--keep", help="Let the session live on without a name, too.")]
Stream = Annotated[
    bool | None, typer.Option("--stream/--no-stream", help="Show the answer as it comes. Default: on a terminal.")
]
Child = Annotated[str, typer.Argument(metavar="CHILD", help="Id; a pid where children have none.", show_default=False)]


def _complete_supervisors(incomplete: str) -> list[str]:
    from athena.cli.tree import complete_supervisors

    return complete_supervisors(incomplete)


Supervised = Annotated[
    str, typer.Option("--supervisor", help="Name of its supervisor.", autocompletion=_complete_supervisors)
]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """What holds for all commands."""
    if version:
        typer.echo(f"athena {VERSION}")
        raise typer.Exit(EXIT_OK)


@app.command()
@takes_start_flags
def run(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; '-' or nothing reads it from stdin.")] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Show the answer as it comes.")] = True,
    json: Json = False,
    *,
    flags: StartFlags,
) -> int:
    """Run one prompt in a session of its own. The log stays; the session ends with the command."""
    from athena.cli import turns
    from athena.cli.screen import Screen

    text = turns.prompt_text(prompt)
    streamed = stream and not json
    session = turns.start(turns.options_of(flags), linked=True)
    try:
        result = turns.ask(session, text, screen=Screen() if streamed else None)
        return turns.report(result, as_json=json, streamed=streamed)
    finally:
        session.stop()


@app.command()
@takes_start_flags
def chat(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="A live session, a log to continue, or a new name.", autocompletion=complete_any
        ),
    ] = None,
    keep: Keep = False,
    *,
    flags: StartFlags,
) -> int:
    """Talk to a session, line by line. With a name it lives on when you leave."""
    from athena.cli.chat import chat

    return chat(target, flags, keep=keep)


@app.command()
@takes_start_flags
def resume(
    stored: Annotated[
        str, typer.Argument(metavar="SESSION_ID", help="Id of a stored session.", autocompletion=complete_stored)
    ],
    prompt: Annotated[str | None, typer.Argument(help="One prompt; without it a conversation.")] = None,
    keep: Keep = False,
    json: Json = False,
    *,
    flags: StartFlags,
) -> int:
    """Continue a stored session with the options it had; an open turn first."""
    from athena.cli.chat import resume

    return resume(stored, prompt, flags, keep=keep, as_json=json)


@app.command()
def send(
    target: Live,
    text: Annotated[str | None, typer.Argument(help="The message; '-' or nothing reads it from stdin.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the answer, or print the message's id.")
    ] = True,
    stream: Stream = None,
    json: Json = False,
) -> int:
    """Send a message to a live session."""
    from athena.cli import turns
    from athena.cli.lookup import attach
    from athena.cli.output import emit, write
    from athena.cli.screen import Screen, is_terminal

    message = turns.prompt_text(text)
    session = attach(target)
    if not wait:
        turn = session.submit(message)
        if json:
            emit({"message_id": turn.message_id, "session_id": session.session_id})
        else:
            write(f"{turn.message_id}\n")
        return EXIT_OK
    streamed = not json and (is_terminal() if stream is None else stream)
    result = turns.ask(session, message, screen=Screen() if streamed else None)
    return turns.report(result, as_json=json, streamed=streamed)


@app.command()
def ls(
    everything: Annotated[bool, typer.Option("--all", "-a", help="All stored sessions, not only the latest.")] = False,
    json: Json = False,
) -> int:
    """List live, failed and stored sessions."""
    from athena.cli import report
    from athena.cli.lookup import rows
    from athena.cli.output import emit

    found = rows()
    if json:
        emit(found)
    else:
        report.sessions(found, everything=everything)
    return EXIT_OK


@app.command()
def status(
    target: Annotated[
        str | None, typer.Argument(help="A session; without one, the supervisor.", autocompletion=complete_any)
    ] = None,
    json: Json = False,
) -> int:
    """Show the state of a session, or of the supervisor."""
    from athena.cli import inspection

    return inspection.supervisor(as_json=json) if target is None else inspection.status(target, as_json=json)


@app.command()
def stop(target: Live, json: Json = False) -> int:
    """Stop a session. Its log stays."""
    from athena.cli import inspection

    return inspection.stop(target, as_json=json)


@app.command()
def messages(target: Any_, json: Json = False) -> int:
    """Print the conversation of a live or stored session."""
    from athena.cli import inspection

    return inspection.messages(target, as_json=json)


@app.command()
def events(
    target: Any_,
    after: Annotated[int, typer.Option(min=0, help="Only events after this seq.")] = 0,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", "-f", help="Wait for more until the session ends.")
    ] = False,
    json: Json = False,
) -> int:
    """Print the recorded events of a live or stored session."""
    from athena.cli import inspection

    return inspection.events(target, after, follow=follow, as_json=json)


@app.command()
def attach(
    target: Live,
    begin: Annotated[
        int | None,
        typer.Option("--from", help="Show what came after this event first; -20: the last 20. Default: the last turn."),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Only look: no message, no interrupt.")] = False,
    json: Json = False,
) -> int:
    """Join a live session: see everybody's messages, answers and tools as they come, and type. Ctrl-C detaches."""
    from athena.cli.attach import attach

    return attach(target, begin, read_only=read_only, as_json=json)


@app.command()
def tree(
    output: Annotated[bool, typer.Option("--output", help="With what a child that died wrote last.")] = False,
    json: Json = False,
) -> int:
    """Show the supervision trees: states, pids, restarts and reasons."""
    from athena.cli.tree import tree

    return tree(as_json=json, with_output=output)


@app.command()
def restart(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="Name or id of a failed session, or a child's id.", show_default=False),
    ],
    supervisor: Annotated[
        str | None,
        typer.Option("--supervisor", help="Name of the child's supervisor.", autocompletion=_complete_supervisors),
    ] = None,
    json: Json = False,
) -> int:
    """Start a failed session again, or with --supervisor a child that does not run."""
    if supervisor is None:
        from athena.cli import inspection

        return inspection.restart(target, as_json=json)
    from athena.cli.tree import act

    return act("restart", target, supervisor, as_json=json)


@app.command()
def terminate(child: Child, supervisor: Supervised, json: Json = False) -> int:
    """End a child of a supervisor. It stays down until it is asked for."""
    from athena.cli.tree import act

    return act("terminate", child, supervisor, as_json=json)


@app.command()
def delete(child: Child, supervisor: Supervised, json: Json = False) -> int:
    """Make a supervisor forget a child that does not run."""
    from athena.cli.tree import act

    return act("delete", child, supervisor, as_json=json)


app.command()(checkpoint)
app.command()(fork)
app.command()(rewind)
app.command()(rm)
store.command()(materialise)
app.add_typer(store, name="store")
