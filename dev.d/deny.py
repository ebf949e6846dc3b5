"""Bans, licences and sources of deny.toml, for machines without cargo-deny.

Reads `cargo metadata` from stdin and the policy from the file given. Understands the parts of the policy this
project uses and refuses others, so that a rule is never believed to hold while nobody checks it.
"""

import json
import re
import subprocess
import sys
import tomllib

KNOWN = {
    "graph": {"targets"},
    "licenses": {"allow", "exceptions"},
    "bans": {"multiple-versions", "wildcards", "deny"},
    "sources": {"unknown-registry", "unknown-git"},
}
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"


def licence_allowed(expression, allowed):
    """Evaluates an SPDX expression: AND binds tighter than OR; the old form with a slash means OR."""
    tokens = re.findall(r"\(|\)|[^\s()/]+|/", expression)
    position = 0

    def primary():
        nonlocal position
        token = tokens[position]
        position += 1
        if token == "(":
            value = disjunction()
            position += 1  # the closing parenthesis
            return value
        if position < len(tokens) and tokens[position] == "WITH":
            token = f"{token} WITH {tokens[position + 1]}"
            position += 2
        return token in allowed

    def conjunction():
        nonlocal position
        value = primary()
        while position < len(tokens) and tokens[position] == "AND":
            position += 1
            value = primary() and value
        return value

    def disjunction():
        nonlocal position
        value = conjunction()
        while position < len(tokens) and tokens[position] in ("OR", "/"):
            position += 1
            value = conjunction() or value
        return value

    return disjunction()


def compiled(metadata):
    """Ids of the packages that are compiled here, tests and build scripts included.

    Metadata also follows dependencies that no feature enables (`name?/feature`); `cargo tree` does not.
    """
    tree = subprocess.run(
        ["cargo", "tree", "--locked", "--quiet", "--workspace", "--prefix", "none", "--format", "{p}"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    wanted = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    return {p["id"] for p in metadata["packages"] if (p["name"], f"v{p['version']}") in wanted}, nodes


def main():
    with open(sys.argv[1], "rb") as file:
        policy = tomllib.load(file)
    problems = [
        f"deny.toml: {section}.{key} is not understood by dev.d/deny.py"
        for section, keys in policy.items()
        for key in keys
        if key not in KNOWN.get(section, ())
    ]
    metadata = json.load(sys.stdin)
    packages = {package["id"]: package for package in metadata["packages"]}
    used, nodes = compiled(metadata)

    allowed = set(policy["licenses"]["allow"])
    exceptions = {entry["crate"]: set(entry["allow"]) for entry in policy["licenses"].get("exceptions", [])}
    for ident in sorted(used):
        package = packages[ident]
        name = f"{package['name']} {package['version']}"
        licence = package["license"]
        if not licence:
            problems.append(f"{name}: states no licence")
        elif not licence_allowed(licence, allowed | exceptions.get(package["name"], set())):
            problems.append(f"{name}: licence {licence} is not on the list")
        if package["source"] not in (None, CRATES_IO):
            problems.append(f"{name}: comes from {package['source']}")

    parents = {}
    for ident in used:
        for dep in nodes[ident]["deps"]:
            parents.setdefault(dep["pkg"], set()).add(packages[ident]["name"])
    for ban in policy["bans"].get("deny", []):
        wrappers = set(ban.get("wrappers", []))
        for ident in used:
            package = packages[ident]
            if package["name"] != ban["crate"]:
                continue
            for parent in sorted(parents.get(ident, {"the workspace"}) - wrappers):
                problems.append(f"{package['name']} {package['version']}: banned ({ban['reason']}), wanted by {parent}")

    versions = {}
    for ident in used:
        versions.setdefault(packages[ident]["name"], set()).add(packages[ident]["version"])
    for name, found in sorted(versions.items()):
        if len(found) > 1:
            print(f"note: {name} is compiled in {len(found)} versions: {', '.join(sorted(found))}", file=sys.stderr)

    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


main()
