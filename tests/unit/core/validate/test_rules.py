"""The table is whole: every rule function of the rule modules stands in it."""

import inspect

from backstay.core.validate import (
    backends,
    externals,
    filters,
    gateways,
    patterns,
    references,
    routes,
    security,
    settings,
)
from backstay.core.validate.rules import OF_COMMIT, OF_DOCUMENT


def test_every_rule_is_in_one_of_the_tables() -> None:
    functions = {
        function
        for module in (backends, externals, filters, gateways, patterns, references, routes, security, settings)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and not name.startswith("_")
        and list(inspect.signature(function).parameters) == ["facts"]
    }
    rules = (*OF_COMMIT, *OF_DOCUMENT)
    assert functions == set(rules)
    assert len(rules) == len(set(rules))
