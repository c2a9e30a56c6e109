from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athena.bash_rules import find_violation, split_segments
from athena.permissions import PHASES, Allow, Ask, Decision, Deny, decide, denied_by_user

READ_ONLY = {"read": True, "glob": True, "write": False, "edit": False, "bash": False, "custom": False}


def decision(tool: str, phase: str, **options: object) -> Decision:
    return decide(tool, READ_ONLY.get(tool, False), phase, **options)  # type: ignore[arg-type]


def code(found: Decision) -> str:
    return found.code if isinstance(found, Deny) else type(found).__name__


@pytest.mark.parametrize("phase", PHASES)
def test_deny_list_beats_every_phase_and_the_allow_list(phase: str) -> None:
    assert code(decision("read", phase, disallowed=["read"], allowed=["read"], has_approver=True)) == "denied_by_list"


@pytest.mark.parametrize("phase", PHASES)
def test_allow_list_denies_what_is_not_in_it(phase: str) -> None:
    assert code(decision("read", phase, allowed=["write"], has_approver=True)) == "not_allowed"
    assert code(decision("read", phase, allowed=[])) == "not_allowed"


def test_being_on_the_allow_list_approves_nothing() -> None:
    assert code(decision("write", "default", allowed=["write"])) == "no_approver"
    assert code(decision("write", "plan", allowed=["write"], has_approver=True)) == "phase_gated"


@pytest.mark.parametrize(
    ("phase", "tool", "with_approver", "without"),
    [
        ("plan", "read", "Allow", "Allow"),
        ("plan", "write", "phase_gated", "phase_gated"),
        ("plan", "custom", "phase_gated", "phase_gated"),
        ("plan", "todo_write", "Allow", "Allow"),
        ("default", "read", "Allow", "Allow"),
        ("default", "write", "Ask", "no_approver"),
        ("default", "bash", "Ask", "no_approver"),
        ("default", "custom", "Ask", "no_approver"),
        ("accept_edits", "write", "Allow", "Allow"),
        ("accept_edits", "edit", "Allow", "Allow"),
        ("accept_edits", "apply_patch", "Allow", "Allow"),
        ("accept_edits", "todo_write", "Allow", "Allow"),
        ("accept_edits", "bash", "Ask", "no_approver"),
        ("accept_edits", "custom", "Ask", "no_approver"),
        ("trusted", "bash", "Allow", "Allow"),
        ("bypass_permissions", "custom", "Allow", "Allow"),
        ("auto", "read", "unknown", "unknown"),
    ],
)
def test_phases(phase: str, tool: str, with_approver: str, without: str) -> None:
    assert code(decision(tool, phase, has_approver=True)) == with_approver
    assert code(decision(tool, phase)) == without


@pytest.mark.parametrize("phase", ["plan", "default", "accept_edits"])
def test_names_that_the_caller_vouches_for_count_as_read_only(phase: str) -> None:
    assert decision("custom", phase, readonly_tools=["custom"]) == Allow()


def test_denial_without_an_approver_says_what_would_allow_it() -> None:
    found = decision("write", "default")
    assert isinstance(found, Deny)
    for hint in ("accept_edits", "trusted", "can_use_tool", "approver", "allowed_tools alone approves nothing"):
        assert hint in found.reason
    found = decision("bash", "accept_edits")
    assert isinstance(found, Deny)
    assert "'trusted'" in found.reason


def test_question_and_users_denial_name_the_tool() -> None:
    found = decision("bash", "default", has_approver=True)
    assert isinstance(found, Ask)
    assert "bash" in found.reason
    assert denied_by_user("bash").code == "user_denied"
    assert denied_by_user("bash", "not now").reason == "not now"


def test_bash_in_plan_is_judged_by_its_command() -> None:
    assert decision("bash", "plan", arguments={"command": "git status && ls"}) == Allow()
    found = decision("bash", "plan", arguments={"command": "cd src && rm -rf x; ls"})
    assert isinstance(found, Deny)
    assert found.code == "phase_gated"
    assert "'rm -rf x'" in found.reason
    assert code(decision("bash", "plan", arguments={})) == "phase_gated"
    assert code(decision("bash", "plan", arguments={"command": 3})) == "phase_gated"


# --- the rule for commands that only read --------------------------------------------------------------------------

READS = """
ls
ls -la src | head -n 5
cat a.txt; wc -l a.txt && echo ok || echo no
ls & pwd
ls # a comment ' with a quote
grep -rn "foo; rm -rf /" src
grep 'a > b && $(x)' file
echo "a && rm b" 'c | d'
echo \\; rm
cat a 2>/dev/null
cat a >/dev/null 2>&1
cat a &>/dev/null
cat < /dev/null
find . -name '*.py' -not -path './x/*'
find . -type f \\( -name a -o -name b \\)
sort -k2,2 -n a | uniq -c
sed -n '1,20p' a.txt
sed -n '5,$p' a.txt
git status
git -C sub log --oneline -5
git --no-pager diff HEAD~1 -- src
git branch -a
git branch --list 'feature/*'
git tag -l
git remote -v
git stash list
git config --get user.name
git show HEAD:README.md
gh pr view 12
gh issue list
rg -n foo src
echo $HOME "${USER}" $?
[ -f a.txt ]
test -d src
date +%F
date -Iseconds
command -v python3
ls src/*.py
ls *
\\ls
"ls" -l
ls \\
  -l
tree -L 2
""".replace("\\\n", "\\\v").strip()

WRITES = r"""
rm a => rm a
cd src && rm -rf x => rm -rf x
ls; touch a => touch a
ls | tee a => tee a
ls | xargs rm => xargs rm
python3 -c 'print(1)' => python3
sh -c ls => sh -c ls
awk '{print}' a => awk
echo a > b => echo a > b
echo a >> b => echo a >> b
echo a >| b => echo a >
cat <<EOF => cat <<EOF
cat < a => cat < a
ls >/dev/nullx => ls >/dev/nullx
ls &> out => ls
ls >&file => ls >
echo $(rm a) => echo $(rm a)
echo "$(rm a)" => echo
echo `rm a` => echo `rm a`
echo "`rm a`" => echo
echo ${x:=1} => echo
echo $((x=1)) => echo
echo $'a' =>
(ls) => (ls)
ls () { rm a => ls ()
{ ls => { ls
if true => if true
! ls => ! ls
FOO=bar ls => FOO=bar ls
PATH=/tmp/evil => PATH
env ls => env ls
exec ls => exec ls
eval ls => eval ls
. ./x => . ./x
./ls => ./ls
/tmp/ls => /tmp/ls
$X => $X
l$X => l$X
find . -delete => find . -delete
find . -exec rm {} + => find
find . -de"lete" => find
find . -fprint a => find
find . $X => find . $X
find * => find *
find . {-delete,} => find
sort -o a b => sort
sort -no a b => sort
sort --out=a b => sort
sort --compress-program=sh a => sort
uniq a b => uniq a b
sed -i s/a/b/ f => sed
sed -n 'w out' f => sed
sed -n 1p -i f => sed
tree -o a => tree
rg --pre sh x => rg
date -s tomorrow => date
date 010203042026 => date
hostname evil => hostname
command rm a => command
git => git
git commit -m x => git commit
git -c core.pager=sh log => git -c
git -p log => git -p
git diff --output=a => git diff
git log --outp a => git log
git grep -iOsh x => git grep
git branch new => git branch new
git branch --list -D x => git branch
git tag v1 => git tag v1
git stash => git stash
git stash pop => git stash pop
git config user.name x => git config
git remote add a b => git remote
git reflog expire => git reflog
gh pr merge 1 => gh pr merge
gh api /x => gh api
gh pr view --web => gh pr view
printf -v x y => printf
test -v 'a[$(id)]' => test
ls 'a => ls 'a
ls "a =>
ls \ =>
nosuchcommand => nosuchcommand
""".strip().splitlines()


@pytest.mark.parametrize("command", [line.replace("\v", "\n") for line in READS.split("\n")])
def test_command_that_only_reads_passes(command: str) -> None:
    assert find_violation(command) is None


@pytest.mark.parametrize("case", WRITES)
def test_command_that_may_write_fails_and_is_named(case: str) -> None:
    command, _, segment = case.partition(" =>")
    violation = find_violation(command)
    assert violation is not None
    assert violation.segment.startswith(segment.strip())
    assert violation.reason


@pytest.mark.parametrize(
    "command",
    [
        "",
        " ; ; ",
        "# only a comment",
        "ls\nrm a",
        "ls # '\nrm a #'",
        "ls \\\n# '\nrm a #'",
        "ls & rm a",
        "ls |& rm a",
        "ls\0",
        "ls >/dev/null\x0bx",
        "r\\\nm a",
    ],
)
def test_command_that_hides_a_write_or_is_empty_fails(command: str) -> None:
    assert find_violation(command) is not None


def test_segments_are_split_where_the_shell_splits() -> None:
    assert split_segments("a 'x;y' && b | c & d\ne || f; # g\nh") == ["a 'x;y'", "b", "c", "d", "e", "f", "h"]
    assert split_segments("a; b $(c); d") == ["a", "b $(c)"]


SHELL_TEXT = st.text(alphabet="ablsrm -;&|\n\\'\"#$(){}<>`=*[]0/dev/null!~\0", max_size=40) | st.text(max_size=30)


@given(SHELL_TEXT)
def test_no_command_makes_the_judgement_raise(command: str) -> None:
    split_segments(command)
    find_violation(command)


@pytest.mark.slow
@pytest.mark.parametrize("shell", list(filter(None, map(shutil.which, ("sh", "bash")))))
def test_no_command_that_passes_runs_anything_else(shell: str, tmp_path: Path) -> None:
    """The shell itself is the judge: commands that pass are run where every other program leaves a trace."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"ls": "exit 0", "rm": f"echo x >> {tmp_path}/trace"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    pieces = [
        "ls",
        "rm",
        " ",
        " ",
        "\n",
        ";",
        "&",
        "|",
        "'",
        '"',
        "\\",
        "#",
        "a",
        "$x",
        "2>&1",
        ">/dev/null",
        "\\\n",
        "-l",
    ]
    ran = 0
    source = random.Random(1)
    for _ in range(20_000):
        command = "ls" + "".join(source.choice(pieces) for _ in range(source.randrange(8)))
        if "rm" not in command or find_violation(command) is not None:
            continue
        ran += 1
        if ran > 150:
            break
        subprocess.run([shell, "-c", command], cwd=work, env={"PATH": str(programs)}, capture_output=True, check=False)
        assert not (tmp_path / "trace").exists(), command
    assert ran > 50
    assert list(work.iterdir()) == []
