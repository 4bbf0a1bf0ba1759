"""`python -m serving_ops doctor`: what is active on this machine or for a model, and why not more."""

from __future__ import annotations

import argparse
import importlib
import json
import sys

from serving_ops import doctor


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m serving_ops", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("doctor", help="say what is active here; exits with 1 where nothing is")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--model", help="a model's path or name: also say which of its norms vLLM would run on ours")
    command.add_argument("--eager", action="store_true", help="with --model: as with vLLM's --enforce-eager")
    arguments = parser.parse_args()
    report = doctor.examine()
    for_model, failed = {}, False
    if arguments.model is not None:
        try:
            for_model["model"] = _examine_model(arguments.model, arguments.eager)
        except Exception as error:  # whatever vLLM raises for a model, or for itself
            failed = True
            for_model["model"] = f"{arguments.model} cannot be examined: {type(error).__name__}: {error}"
    if arguments.json:
        print(json.dumps(report.as_dict() | for_model, indent=2))
    else:
        print(report.as_text(), *for_model.values(), sep="\n")
    return 0 if report.active and not failed else 1


def _examine_model(model: str, eager: bool) -> str:
    # By name: this package knows its plugins only as the engines do.
    adapter = importlib.import_module("serving_ops.integrations.vllm.model_doctor")
    line: str = adapter.examine(model, eager=eager)
    return line


if __name__ == "__main__":
    sys.exit(main())
