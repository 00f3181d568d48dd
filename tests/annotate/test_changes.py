"""The page's queue of changes, in Node.js: what is refused is not taken for saved."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from sparse3dunet.annotate.browser.server import STATIC

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="there is no Node.js")
SCRIPT = """
import { Changes } from "API";
const told = [], sent = [];
let full = true;
globalThis.fetch = async (path) => {
  const after = Number(new URLSearchParams(path.split("?")[1]).get("after"));
  sent.push(`${path.split("?")[0]} ${after}`);
  const content = full ? { error: "No space left" } : { sequence: after + 1 };
  return new Response(JSON.stringify(content), { status: full ? 500 : 200 });
};
const changes = new Changes(0, (how) => told.push(how instanceof Error ? how.message : how));
const refusal = (promise) => promise.then(() => "none", (error) => error.message);
const strokes = [changes.paint(0, 1, new Uint8Array(4)), changes.paint(0, 2, new Uint8Array(4))];
const densify = await refusal(changes.settled());
const undo = await refusal(changes.post("api/undo"));
const failed = { told: told.at(-1), waiting: changes.waiting, sent: sent.length };
full = false;
changes.resend();
await Promise.all(strokes);
await changes.settled();
console.log(JSON.stringify({ densify, undo, failed, sent, last: told.at(-1), waiting: changes.waiting }));
"""


def test_a_refused_stroke_waits_to_be_sent_again():
    script = SCRIPT.replace("API", (STATIC / "api.js").as_uri())
    command = [NODE, "--input-type=module", "-e", script]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["failed"] == {"told": "No space left", "waiting": 2, "sent": 1}
    assert "No space left" in found["densify"]
    assert "Send again" in found["undo"]
    assert found["sent"] == ["api/slice 0", "api/slice 0", "api/slice 1"], "in order, and none twice"
    assert (found["last"], found["waiting"]) == ("saved", 0)
