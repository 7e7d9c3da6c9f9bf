"""A process that renders chat templates, in bounded memory. Knows nothing but jinja2; `rendering` talks to it.

A request is one line of JSON on standard input, its answer one on standard output. The templates see what
transformers gives them: the same sandbox, filters and functions.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# What a template may make, and what making it may take beyond what this process needs itself.
MOST_CHARACTERS, MOST_BYTES = 64 << 20, 768 << 20


class Generation(Extension):
    """`{% generation %}` marks replies for training; here it only shows what is in it."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_shown"), [], [], body).set_lineno(line)

    def _shown(self, caller: Callable[[], str]) -> str:
        return caller()


def environment() -> ImmutableSandboxedEnvironment:
    """The sandbox of transformers' `apply_chat_template`."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    sandbox.filters["tojson"] = to_json
    sandbox.globals.update(raise_exception=raise_exception, strftime_now=lambda form: datetime.now().strftime(form))
    return sandbox


def answer(sandbox: ImmutableSandboxedEnvironment, request: Any) -> dict[str, Any]:
    """What becomes of a request: `text`, or `names` of variables, or `stopped`, or `error` and its `line`."""
    try:
        if "values" not in request:
            sandbox.from_string(request["template"])  # what is wrong with it is said now
            return {"names": sorted(meta.find_undeclared_variables(sandbox.parse(request["template"])))}
        text = sandbox.from_string(request["template"]).render(**request["values"])
        if len(text) > MOST_CHARACTERS:
            return {"stopped": f"It makes more than {MOST_CHARACTERS >> 20} million characters."}
        return {"text": text}
    except MemoryError:
        return {"stopped": f"It needs more than {MOST_BYTES >> 20} MiB of memory."}
    except TemplateSyntaxError as error:
        return {"error": error.message, "line": error.lineno}
    except RecursionError:
        return {"error": "it recurses too deeply"}
    except Exception as error:  # noqa: BLE001  (a template can raise what it likes; all of it is its fault)
        return {"error": str(error) or type(error).__name__}


def main() -> None:
    """Answer until there is nothing to read."""
    own = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + MOST_BYTES, own + MOST_BYTES))
    # Nobody writes to this pipe: what happens on it is the end of who asked. The signal ends this then, whatever a
    # template is at.
    end = int(sys.argv[1])
    fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_ASYNC)
    sandbox = environment()
    out = sys.stdout.buffer
    out.write(b"\n")  # ready
    out.flush()
    for line in sys.stdin.buffer:
        found = answer(sandbox, json.loads(line))
        try:
            text = json.dumps(found)
        except MemoryError:
            text = json.dumps({"stopped": f"It needs more than {MOST_BYTES >> 20} MiB of memory."})
        out.write(text.encode() + b"\n")
        out.flush()


if __name__ == "__main__":
    main()
