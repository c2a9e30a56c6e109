"""Test doubles that ship: strict fakes of the servers Athena talks to.

A fake answers from a script and refuses, as the real server would, every request that breaks the published rules. So a
test that passes against it says something about the real server too.
"""

from athena.testing.fake_http import FakeServer, Recorded
from athena.testing.fake_ollama import FakeOllama
from athena.testing.fake_openai import FakeOpenAI
from athena.testing.fake_script import FakeStep

__all__ = ["FakeOllama", "FakeOpenAI", "FakeServer", "FakeStep", "Recorded"]
