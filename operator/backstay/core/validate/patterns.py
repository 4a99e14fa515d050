"""Rules about regular expressions: every pattern of a commit must be one that RE2 takes."""

from collections.abc import Iterator

from backstay.config.regex import BadPattern, compile_pattern, matches_whole
from backstay.core.intents import AuthorizationSpec, RouteRule, RouteSpec
from backstay.core.problems import Problem
from backstay.core.snapshot import Document
from backstay.core.validate.facts import Facts, problem


def takes_whole(pattern: str, value: str) -> bool:
    """Whether the expression takes the whole value; one that is no expression takes nothing (another rule says so)."""
    try:
        return matches_whole(pattern, value.encode())
    except BadPattern:
        return False


def bad_patterns(facts: Facts) -> Iterator[Problem]:
    for document, path, pattern in _patterns(facts):
        try:
            compile_pattern(pattern)
        except BadPattern as error:
            message = f"{pattern!r} is not a regular expression of RE2 ({error}), expected one without look-around"
            yield problem(document, path, "BadPattern", message)


def _patterns(facts: Facts) -> Iterator[tuple[Document, str, str]]:
    for document, spec in facts.of(RouteSpec):
        for number, rule in enumerate(spec.rules):
            for path, pattern in _of_rule(rule):
                yield document, f"spec.rules[{number}].{path}", pattern
    for document, policy in facts.of(AuthorizationSpec):
        for number, each in enumerate(policy.rules):
            for index, operation in enumerate(each.to):
                for place, header in enumerate(operation.headers):
                    if header.type == "RegularExpression":
                        yield document, f"spec.rules[{number}].to[{index}].headers[{place}].value", header.value


def _of_rule(rule: RouteRule) -> Iterator[tuple[str, str]]:
    for index, match in enumerate(rule.matches):
        at = f"matches[{index}]"
        if match.path and match.path.type == "RegularExpression":
            yield f"{at}.path.value", match.path.value
        if match.authority and match.authority.type == "RegularExpression":
            yield f"{at}.authority.value", match.authority.value
        for place, header in enumerate(match.headers):
            if header.type == "RegularExpression":
                yield f"{at}.headers[{place}].value", header.value
        for place, param in enumerate(match.query_params):
            if param.type == "RegularExpression":
                yield f"{at}.queryParams[{place}].value", param.value
    yield from _of_filters(rule)


def _of_filters(rule: RouteRule) -> Iterator[tuple[str, str]]:
    for index, item in enumerate(rule.filters):
        for name, settings in (("urlRewrite", item.url_rewrite), ("requestRedirect", item.request_redirect)):
            if settings and settings.path and settings.path.pattern:
                yield f"filters[{index}].{name}.path.pattern", settings.path.pattern
        for place, origin in enumerate(item.cors.allow_origins if item.cors else ()):
            if origin.type == "RegularExpression":
                yield f"filters[{index}].cors.allowOrigins[{place}].value", origin.value
