"""Which parts of a JSON schema have a finite value; a schema that requires itself inside itself has none."""

from collections import defaultdict, deque
from typing import Any

Schema = dict[str, Any]


def finite_schemas(nodes: dict[str, Schema], leads: dict[int, Schema]) -> set[int]:
    """Ids of the schemas for which recursion permits a finite value, as a least fixed point.

    `nodes` maps JSON pointers to schemas, parents first; `leads` maps the id of a schema with a `$ref` to its target.
    """
    dependents = defaultdict(list)
    for pointer, node in nodes.items():
        parent = _parent(pointer, nodes)
        if parent is not None:
            dependents[id(node)].append(parent)
        if id(node) in leads:
            dependents[id(leads[id(node)])].append(node)
    finite: set[int] = set()
    waiting = deque(reversed(nodes.values()))  # children first: most are decided in one visit
    while waiting:
        node = waiting.popleft()
        if id(node) not in finite and _is_finite(node, leads, finite):
            finite.add(id(node))
            waiting.extend(dependents[id(node)])
    return finite


def mapping(node: Schema, keyword: str) -> Schema:
    """The value of a keyword, or {} if it is not an object."""
    value = node.get(keyword)
    return value if isinstance(value, dict) else {}


def listed(node: Schema, keyword: str) -> list[Any]:
    """The value of a keyword, or [] if it is not a list."""
    value = node.get(keyword)
    return value if isinstance(value, list) else []


def _parent(pointer: str, nodes: dict[str, Schema]) -> Schema | None:
    while pointer != "#":
        pointer = pointer.rpartition("/")[0]
        if pointer in nodes:
            return nodes[pointer]
    return None


def _is_finite(node: Schema, leads: dict[int, Schema], finite: set[int]) -> bool:
    """Whether the schema has a finite value, given the ids of schemas that are known to have one."""

    def ends(part: Any) -> bool:
        return id(part) in finite if isinstance(part, dict) else part is not False

    if id(node) in leads and not ends(leads[id(node)]):
        return False
    if not all(ends(branch) for branch in listed(node, "allOf")):
        return False
    for keyword in ("anyOf", "oneOf"):
        if listed(node, keyword) and not any(ends(branch) for branch in node[keyword]):
            return False
    if "const" in node or "enum" in node or _kinds(node) - {"object", "array"}:
        return True
    needed = {"object": _needed_by_object(node), "array": _needed_by_array(node)}
    return any(all(ends(part) for part in needed[kind]) for kind in _kinds(node))


def _kinds(node: Schema) -> set[str]:
    """The types that a value may have; without `type` any, for which "null" stands."""
    types = node.get("type")
    if isinstance(types, str):
        return {types}
    return {str(kind) for kind in types} if isinstance(types, list) else {"null"}


def _needed_by_object(node: Schema) -> list[Any]:
    properties, others = mapping(node, "properties"), node.get("additionalProperties", True)
    return [properties.get(name, others) for name in listed(node, "required") if isinstance(name, str)]


def _needed_by_array(node: Schema) -> list[Any]:
    least = node.get("minItems")
    if not isinstance(least, int) or least <= 0:
        return []
    first = listed(node, "prefixItems")
    return first[:least] + ([node.get("items", True)] if least > len(first) else [])
