"""The free variables of a chat template: the names that `--template-arg` can set."""

from collections.abc import Iterable, Iterator, Sequence

from jinja2 import TemplateError, nodes

from gladstone.chat.jinja_sandbox import make_environment

# every template gets these; no argument may replace them
ALWAYS_GIVEN = frozenset({"messages", "tools", "add_generation_prompt", "strftime_now", "raise_exception"})
_IN_MACROS = frozenset({"caller", "varargs", "kwargs"})


def find_variables(source: str) -> list[str]:
    """Return the names that a template reads before it sets them, without those that every template gets.

    Empty for a template that does not compile. Jinja's own `find_undeclared_variables` also returns names that are set
    in both branches of an `if`.
    """
    try:
        tree = make_environment().parse(source)
    except (TemplateError, RecursionError):
        return []
    known = ALWAYS_GIVEN | set(make_environment().globals)
    return sorted(set(_reads_of_body(tree.body, set(known))))


def _reads_of_body(body: Iterable[nodes.Node], known: set[str]) -> Iterator[str]:
    """Yield the names that the statements read; adds the names that they set to `known`."""
    for node in body:
        yield from _reads(node, known)


def _reads(node: nodes.Node, known: set[str]) -> Iterator[str]:
    match node:
        case nodes.Name():
            if node.ctx == "load" and node.name not in known:
                yield node.name
        case nodes.Assign():
            yield from _reads(node.node, known)
            yield from _reads(node.target, known)
            known |= _names_set(node.target)
        case nodes.AssignBlock():
            yield from _reads_of_body(node.body, set(known))
            known |= _names_set(node.target)
        case nodes.If():
            yield from _reads_branches(node, known)
        case nodes.For():
            yield from _reads(node.iter, known)
            inside = known | _names_set(node.target) | {"loop"}
            if node.test:
                yield from _reads(node.test, inside)
            yield from _reads_of_body(node.body, inside)
            yield from _reads_of_body(node.else_, set(known))
        case nodes.Macro() | nodes.CallBlock():
            yield from _reads_macro(node, known)
        case nodes.With():
            yield from _reads_of_body(node.values, known)
            yield from _reads_of_body(node.body, known | set().union(*map(_names_set, node.targets)))
        case nodes.Scope() | nodes.FilterBlock() | nodes.Block():
            yield from _reads_of_body(node.iter_child_nodes(), set(known))
        case _:
            yield from _reads_of_body(node.iter_child_nodes(), known)


def _reads_branches(node: nodes.If, known: set[str]) -> Iterator[str]:
    """Only names that every branch sets are known after the `if`."""
    yield from _reads(node.test, known)
    ends = []
    branches: list[Sequence[nodes.Node]] = [node.body, *([branch] for branch in node.elif_), node.else_]
    for branch in branches:
        after = set(known)
        yield from _reads_of_body(branch, after)
        ends.append(after)
    if node.else_:
        known |= set.intersection(*ends)


def _reads_macro(node: nodes.Macro | nodes.CallBlock, known: set[str]) -> Iterator[str]:
    if isinstance(node, nodes.Macro):
        known.add(node.name)
    else:
        yield from _reads(node.call, known)
    yield from _reads_of_body(node.defaults, known)
    yield from _reads_of_body(node.body, known | {argument.name for argument in node.args} | _IN_MACROS)


def _names_set(target: nodes.Node) -> set[str]:
    """The names that a target sets; `ns.x` sets none."""
    targets = target.find_all(nodes.Name) if not isinstance(target, nodes.Name) else [target]
    return {name.name for name in targets if name.ctx == "store"}
