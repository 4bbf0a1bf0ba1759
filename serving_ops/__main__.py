"""`python -m serving_ops doctor`: what is active on this machine, and why not more."""

from __future__ import annotations

import argparse
import json
import sys

from serving_ops import doctor


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m serving_ops", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("doctor", help="say what is active here; exits with 1 where nothing is")
    command.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    report = doctor.examine()
    print(json.dumps(report.as_dict(), indent=2) if arguments.json else report.as_text())
    return 0 if report.active else 1


if __name__ == "__main__":
    sys.exit(main())
