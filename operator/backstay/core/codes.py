"""Every reason that Backstay gives, its stable code, and what to do about it: `backstay explain BS1403`.

Reasons are what conditions, events and problems carry; codes are what people search for. Blocks: 11xx files and YAML,
12xx shape, 13xx references, 14xx routes, 15xx security, 16xx rollout settings, 18xx gateways, 17xx guardrails and expectations, 2xxx
source, 3xxx rollout, 4xxx proxies, 5xxx operator.

Rule: a code is never used again for something else, and a reason has exactly one. Tests assert that every reason a
Problem or a Source exception carries is here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Explanation:
    code: str
    """`BS` and four digits."""
    reason: str
    """CamelCase, as in conditions."""
    title: str
    cause: str
    example: str
    """What leads to it, as a person would write it; empty where nobody writes anything."""
    mend: str


_FILES: Final = (
    Explanation(
        "BS1101",
        "YamlSyntax",
        "The file is not YAML",
        "The text cannot be read as YAML from the named place on; a bracket or quote left open earlier may be why.",
        "rules: [a, b\nhosts: [c]",
        "Mend the text at the line and column; an editor with a YAML extension marks the place.",
    ),
    Explanation(
        "BS1102",
        "TabIndentation",
        "A tab indents a line",
        "YAML allows only spaces for indentation.",
        "spec:\n\thosts: [sa-logic]",
        "Replace the tab by spaces.",
    ),
    Explanation(
        "BS1103",
        "NotUtf8",
        "The file is not UTF-8",
        "Intents are UTF-8, with or without a byte order mark; this file has other bytes (Latin-1 or UTF-16, say).",
        "",
        "Save the file as UTF-8.",
    ),
    Explanation(
        "BS1104",
        "ControlCharacter",
        "A character that cannot be seen",
        "Control characters, line separators and bidirectional controls hide from a reviewer what is read; a line end "
        "in a value is never meant outside annotations.",
        'value: "a\\r\\nb"',
        "Delete the character; write the value on one line.",
    ),
    Explanation(
        "BS1105",
        "DuplicateKey",
        "A key is given twice",
        "Most YAML readers silently keep the last value, so what a reviewer reads first would not count.",
        "timeouts: {request: 5s}\ntimeouts: {request: 50s}",
        "Keep one of the two lines.",
    ),
    Explanation(
        "BS1106",
        "AnchorForbidden",
        "An anchor",
        "Anchors and aliases make one line mean something in another place; intents are short enough without.",
        "labels: &v2 {version: v2}",
        "Remove `&name` and write the value out where it is used.",
    ),
    Explanation(
        "BS1107",
        "AliasForbidden",
        "An alias",
        "Aliases can blow a small file up to any size, and make lines depend on others.",
        "labels: *v2",
        "Write the value itself.",
    ),
    Explanation(
        "BS1108",
        "TagForbidden",
        "A YAML tag",
        "The schema says what a value is; tags are never needed.",
        "weight: !!int '10'",
        "Remove the tag; quote the value if text is meant.",
    ),
    Explanation(
        "BS1109",
        "KeyNotText",
        "A key that is no text",
        "Objects are JSON objects: their keys are text.",
        "? [a, b]\n: c",
        "Give the field its name.",
    ),
    Explanation(
        "BS1110",
        "BadNumber",
        "A number nobody can mean",
        "Not a number, infinite, or larger than 64 bits: readers of the JSON would disagree about it.",
        "weight: .inf",
        "Write a finite number, or quote it if text is meant.",
    ),
    Explanation(
        "BS1111",
        "NoValue",
        "A field without a value",
        "`null` is not a value of any field; often the value, or the indentation of the lines below, is missing.",
        "timeouts:\n",
        "Give the value, or leave the field out to get its default.",
    ),
    Explanation(
        "BS1112",
        "FileTooLarge",
        "A file over the cap",
        "The file has more bytes than an intent file may have.",
        "",
        "Split the file, or move what is no intent out of the repository's sub-path.",
    ),
    Explanation(
        "BS1113",
        "LimitExceeded",
        "More than can be read",
        "A cap on files, documents, values, nesting or key length was exceeded. The caps are far above what people "
        "write; they keep a hostile repository from harming the operator.",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
        "Split the file or the repository; the message names the cap.",
    ),
    Explanation(
        "BS1114",
        "TooManyProblems",
        "Some problems are not shown",
        "The file has more problems than are listed.",
        "",
        "Mend the listed ones and validate again.",
    ),
    Explanation(
        "BS1115",
        "FileName",
        "A file name with control characters",
        "Messages and reviews could not show the name truthfully.",
        "",
        "Rename the file.",
    ),
    Explanation(
        "BS1116",
        "Symlink",
        "A symbolic link",
        "Links could point out of the repository; they are not followed.",
        "ln -s /etc/hosts mesh/hosts.yaml",
        "Commit the file itself.",
    ),
    Explanation(
        "BS1117",
        "Submodule",
        "A submodule",
        "Submodules belong to another repository with other reviewers; they are not fetched.",
        "git submodule add https://example.test/mesh.git mesh",
        "Commit the files themselves, or give that repository a mesh of its own.",
    ),
    Explanation(
        "BS1118",
        "InvalidPath",
        "A path that is not read",
        "The path leaves the repository, is no regular file, or is no folder of the commit.",
        "path: ../other",
        "Name a folder inside the repository; commit regular files with plain names.",
    ),
    Explanation(
        "BS1119",
        "NotAnObject",
        "A document that is no object",
        "Every YAML document of a mesh repository is an intent with `apiVersion`, `kind`, `metadata` and `spec`.",
        "- hosts: [sa-logic]",
        "Write an intent, or move the file out of the repository's sub-path.",
    ),
)

_SHAPE: Final = (
    Explanation(
        "BS1201",
        "UnknownApiVersion",
        "An unknown apiVersion",
        "The document is not of an API version that this Backstay reads.",
        "apiVersion: v1",
        "Write `apiVersion: backstay.dev/v1alpha1`; keep other tools' documents out of the repository's sub-path.",
    ),
    Explanation(
        "BS1202",
        "UnknownKind",
        "An unknown kind",
        "There is no intent of this kind.",
        "kind: Rout",
        "Use one of the kinds that the message lists.",
    ),
    Explanation(
        "BS1203",
        "WrongType",
        "A value of the wrong type",
        "Text where a number is expected, a list where an object is, and so on. Unquoted `1.10`, `true` and `42` are "
        "not text.",
        "labels: {version: 2}",
        "Write the expected type; quote text that looks like a number.",
    ),
    Explanation(
        "BS1204",
        "BadFormat",
        "A value of the wrong form",
        "The value does not have the form that the field asks for (a duration, a host name, a path, ...).",
        "request: 15",
        "Write it like the example in the message.",
    ),
    Explanation(
        "BS1205",
        "UnknownValue",
        "A value that is not one of the choices",
        "The field has a closed list of values; upper and lower case count.",
        "mode: strict",
        "Use one of the values that the message lists.",
    ),
    Explanation(
        "BS1206",
        "MissingField",
        "A field is missing",
        "The field has no default and must be given.",
        "kind: Route\nmetadata: {name: sa-logic}",
        "Add the field.",
    ),
    Explanation(
        "BS1207",
        "UnknownField",
        "A field nobody knows",
        "A mistyped field would silently do nothing; therefore unknown ones are refused. Often it belongs one level "
        "higher or lower.",
        "timeout: 5s",
        "Correct the name (the message may suggest one) or its indentation.",
    ),
    Explanation(
        "BS1208",
        "OutOfRange",
        "A number out of range",
        "The number is below or above what the field allows.",
        "weight: -1",
        "Write a number within the range.",
    ),
    Explanation(
        "BS1209",
        "TooFew",
        "Too few items",
        "The list, text or object has fewer items than the field needs.",
        "hosts: []",
        "Add what is missing.",
    ),
    Explanation(
        "BS1210",
        "TooMany",
        "Too many items",
        "The list, text or object has more items than the field allows.",
        "",
        "Split the document.",
    ),
    Explanation(
        "BS1211",
        "WrongShape",
        "The document does not fit its schema",
        "The document is too large for all its mistakes to be listed; this is the first.",
        "",
        "Mend it and validate again, or split the file to see all mistakes.",
    ),
)

_REFERENCES: Final = (
    Explanation(
        "BS1301",
        "DuplicateDocument",
        "A document is defined twice",
        "Two documents have the same kind, namespace and name; which of them counts would depend on file names.",
        "",
        "Delete or rename one of the two.",
    ),
    Explanation(
        "BS1302",
        "SeveralMeshes",
        "More than one Mesh",
        "Settings of the whole mesh can be said only once.",
        "",
        "Merge the Mesh documents.",
    ),
    Explanation(
        "BS1303",
        "ConflictingHosts",
        "Two Routes for one host and port",
        "Rules are tried in the order of one Route; between two there is no order.",
        "hosts: [sa-logic]  # in two Routes",
        "Merge the rules into one Route, or give the Routes different ports.",
    ),
    Explanation(
        "BS1304",
        "ConflictingBackends",
        "Two Backends for one service",
        "How callers reach a service can be said only once.",
        "service: sa-logic  # in two Backends",
        "Merge the two Backends.",
    ),
    Explanation(
        "BS1305",
        "DuplicateSubset",
        "A subset is defined twice",
        "Two subsets of one service have the same name.",
        "subsets: [{name: v2, ...}, {name: v2, ...}]",
        "Rename or delete one of the two.",
    ),
    Explanation(
        "BS1306",
        "UnknownSubset",
        "A subset that nothing defines",
        "A Route sends requests to a subset that the service's Backend does not define.",
        "backendRefs: [{name: sa-logic, subset: v22}]",
        "Define the subset in the service's Backend, or correct the name.",
    ),
    Explanation(
        "BS1307",
        "ServiceNotFound",
        "The service is not there yet",
        "The registry has no such service now. That is not the commit's fault: the document waits, everything else "
        "goes on, and it is taken up when the service appears.",
        "backendRefs: [{name: sa-logik}]",
        "Deploy the service, or correct the name.",
    ),
    Explanation(
        "BS1308",
        "UnknownPort",
        "A port the service does not have",
        "The service is known and does not offer this port. A backendRef without a port takes the Route's, or the "
        "ports of its hosts.",
        "backendRefs: [{name: sa-logic, port: 8080}]",
        "Write one of the ports that the message lists.",
    ),
    Explanation(
        "BS1309",
        "PortNotHttp",
        "A Route to a port that is not HTTP",
        "Protocols are declared, not guessed, and this port is declared as TCP.",
        "backendRefs: [{name: postgres, port: 5432}]",
        "Name an HTTP port, or declare the port's protocol as http.",
    ),
    Explanation(
        "BS1310",
        "SubsetSelectsNothing",
        "No instance belongs to the subset",
        "No running instance of the service carries all the labels. Legal, as a deployment may be about to come; if "
        "requests go there they will find nobody, and the rollout will notice.",
        "labels: {version: v22}",
        "Correct the labels, or deploy what carries them first.",
    ),
    Explanation(
        "BS1311",
        "WorkloadNotFound",
        "The workload is not there yet",
        "A selector names a workload that the registry does not have; the document waits for it.",
        "selector: {workloads: [sa-logik]}",
        "Deploy the workload, or correct the name.",
    ),
    Explanation(
        "BS1312",
        "PortNotServed",
        "A policy for a port that nobody serves",
        "None of the selected workloads listens on the port. Policies go by the application's own port, not the "
        "service's.",
        "ports: [{port: 80, mode: STRICT}]  # the application listens on 8080",
        "Write the application's port.",
    ),
)

_ROUTES: Final = (
    Explanation(
        "BS1401",
        "UnreachableRule",
        "A rule that no request reaches",
        "Rules are tried in order, and earlier ones take everything that this one would.",
        "rules:\n- backendRefs: [...]        # takes everything\n- matches: [...]",
        "Put the narrower rule first.",
    ),
    Explanation(
        "BS1402",
        "DuplicateRuleName",
        "Two rules with one name",
        "Counters, logs and verdicts go by rule names. A rule without one is called `rule-` and its place.",
        "- name: canary\n- name: canary",
        "Rename one of them.",
    ),
    Explanation(
        "BS1403",
        "WeightSum",
        "Weights that add up to nothing",
        "All backends of the rule have weight 0.",
        "backendRefs: [{name: sa-logic, weight: 0}]",
        "Give at least one backend a weight above 0. Weights need not add up to 100.",
    ),
    Explanation(
        "BS1404",
        "DuplicateBackendRef",
        "The same backend twice in a rule",
        "Which of the two weights is meant cannot be told, and evidence could not tell them apart.",
        "backendRefs: [{name: sa-logic, weight: 90}, {name: sa-logic, weight: 10}]",
        "Keep one; name a subset if two versions are meant.",
    ),
    Explanation(
        "BS1405",
        "TimeoutOrder",
        "An attempt may take longer than the request",
        "The whole request, retries included, ends before one attempt may.",
        "timeouts: {request: 5s, backendRequest: 10s}",
        "Lower backendRequest or raise request (0s is no limit).",
    ),
    Explanation(
        "BS1406",
        "RetryNeverOnTimeout",
        "Timed-out attempts are not retried",
        "backendRequest ends attempts early, which is mostly done to try again; none of the conditions counts for it.",
        "timeouts: {backendRequest: 1s}\nretry: {attempts: 3}",
        "Add `gateway-error` (or `reset`, `5xx`) to retryOn; or leave it, if only a bound per attempt is meant.",
    ),
    Explanation(
        "BS1407",
        "RetryWithoutCondition",
        "Retries on no condition",
        "retryOn is empty, so the attempts would never happen.",
        "retry: {attempts: 3, retryOn: []}",
        "Leave retryOn out for its default, or write `attempts: 0`.",
    ),
    Explanation(
        "BS1408",
        "EmptyFault",
        "A fault that does nothing",
        "Neither delay nor abort is given.",
        "fault: {}",
        "Give one, or leave fault out.",
    ),
    Explanation(
        "BS1409",
        "MatchValueMissing",
        "Nothing to compare with",
        "Exact and Prefix matches need a value.",
        "headers: [{name: x-version}]",
        "Give the value, or write `type: Present`.",
    ),
    Explanation(
        "BS1410",
        "MatchValueUnused",
        "A value that is not looked at",
        "Present and Absent do not compare values.",
        "headers: [{name: x-version, type: Present, value: v2}]",
        "Leave the value out, or write `type: Exact`.",
    ),
    Explanation(
        "BS1411",
        "NeverMatches",
        "Conditions that exclude each other",
        "All headers and parameters of a match must hold together; these two cannot.",
        "headers: [{name: x-version, value: v1}, {name: x-version, value: v2}]",
        "Make alternatives of them: two entries under matches.",
    ),
    Explanation(
        "BS1412",
        "BadPattern",
        "A regular expression that RE2 does not take",
        "Regular expressions are RE2, so that none can take long: no look-around, no back-references in patterns. In a "
        "substitution `\\1` must be a group that the pattern has.",
        "path: {type: RegularExpression, value: '/(?!admin).*'}",
        "Write it without look-around, or as an exact or prefix match; https://github.com/google/re2/wiki/Syntax.",
    ),
    Explanation(
        "BS1413",
        "FilterMismatch",
        "A filter's type and its fields differ",
        "`type` names the one field that is set, as in Gateway API: `type: CORS` has `cors` and no other. The same holds "
        "for path modifiers and for `ttl`, which only a cookie has.",
        "filters: [{type: CORS, rateLimit: {requests: 10}}]",
        "Set the field of that type, and take the others out.",
    ),
    Explanation(
        "BS1414",
        "FilterRepeated",
        "The same filter twice in a rule",
        "Each type may stand once in a rule; only mirrors may be several.",
        "filters: [{type: RateLimit, rateLimit: {requests: 5}}, {type: RateLimit, rateLimit: {requests: 9}}]",
        "Put what both say into one.",
    ),
    Explanation(
        "BS1415",
        "FilterConflict",
        "Filters that cannot both act",
        "A rule that redirects or answers directly forwards nothing, so backends, rewrites, retries and mirrors beside it "
        "would do nothing; and a prefix can only be replaced where one was matched.",
        "backendRefs: [{name: sa-logic}]\nfilters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]",
        "Decide for one of them, or make two rules.",
    ),
    Explanation(
        "BS1416",
        "FilterWithoutEffect",
        "A filter that changes nothing",
        "The filter has no settings; a redirect without any would send callers to the same place for ever.",
        "filters: [{type: URLRewrite, urlRewrite: {}}]",
        "Say what it changes, or take it out.",
    ),
    Explanation(
        "BS1417",
        "ForbiddenHeader",
        "A header that the proxy writes itself",
        "Framing (Content-Length, Transfer-Encoding, Connection), Host and identity (X-Forwarded-Client-Cert, X-Backstay-*) "
        "are never what a document says: a wrong one would let requests be smuggled or callers be somebody else.",
        "requestHeaderModifier: {set: [{name: Host, value: other}]}",
        "Use another header; for the host there is `urlRewrite.hostname`.",
    ),
    Explanation(
        "BS1418",
        "RateLimitPeriod",
        "A rate limit's period is too short",
        "Proxies count in a period of at least 10ms; a bucket filled more often than that limits nothing reliably.",
        "rateLimit: {requests: 1, per: 1ms}",
        "Use a longer period with more requests.",
    ),
    Explanation(
        "BS1419",
        "CorsForEverybody",
        "Every web page may act for a visitor",
        "With `allowCredentials` and an origin that takes everything, any page that a visitor opens can read answers with "
        "the visitor's cookies.",
        "cors: {allowOrigins: [{value: '*'}], allowCredentials: true}",
        "List the origins that need it.",
    ),
    Explanation(
        "BS1420",
        "HashWithoutValue",
        "A hash without a value, or a value that nobody hashes",
        "`RingHash` and `Maglev` choose by the hash of what `hashOn` names; the other policies look at no value. A header, cookie "
        "or parameter has a name, `Source` has none.",
        "loadBalancing: {policy: RingHash}",
        "Add `hashOn: {type: Header, name: x-user}`, or take another policy.",
    ),
    Explanation(
        "BS1421",
        "HealthTimes",
        "Times of ejections or checks that do not fit",
        "An ejection lasts at least a moment and at most `maxEjectionTime`; a check is made at most every 500ms, and its answer "
        "must come before the next one.",
        "healthCheck: {path: /healthz, interval: 1s, timeout: 2s}",
        "Set the times as the message says.",
    ),
    Explanation(
        "BS1422",
        "StatusCodesUnused",
        "Status codes that no condition asks for",
        "`statusCodes` is what `retriable-status-codes` in `retryOn` means: either without the other does nothing.",
        "retry: {retryOn: [connect-failure], statusCodes: [425]}",
        "Name both, or neither.",
    ),
)

_SECURITY: Final = (
    Explanation(
        "BS1501",
        "AuthenticationOverlap",
        "Two Authentications for one workload",
        "Both name the workload, or both are for the whole namespace. One of each may stand together: the narrower "
        "wins.",
        "selector: {workloads: [sa-logic]}  # in two documents",
        "Merge the two.",
    ),
    Explanation(
        "BS1502",
        "DuplicatePort",
        "A port is given twice",
        "An Authentication gives two modes for one port.",
        "ports: [{port: 8080, mode: STRICT}, {port: 8080, mode: DISABLE}]",
        "Keep one.",
    ),
    Explanation(
        "BS1503",
        "TlsConflict",
        "Callers without TLS, servers with STRICT",
        "The Backend tells callers not to use TLS, and the service's workloads accept nothing else: every request "
        "fails.",
        "tls: {mode: DISABLE}  # and mtls: {mode: STRICT} for the workload",
        "Remove `tls.mode: DISABLE`, or make the workloads PERMISSIVE.",
    ),
    Explanation(
        "BS1504",
        "ForeignTrustDomain",
        "A principal of another trust domain",
        "Identities of this mesh begin with its own trust domain; nobody will ever be called like this.",
        "principals: [spiffe://other.example/ns/shop/sa/web]",
        "Correct the trust domain, or use serviceAccounts, which need none.",
    ),
    Explanation(
        "BS1505",
        "PolicyWithoutEffect",
        "A policy that does nothing",
        "Deny and Audit act on the requests that a rule matches, and there is no rule.",
        "action: Deny",
        "Add rules; `rules: [{}]` matches every request.",
    ),
    Explanation(
        "BS1506",
        "TrustDomainMismatch",
        "The Mesh names another trust domain than the CA's",
        "All identities were issued for one trust domain; another one would make every proxy a stranger to the others.",
        "trustDomain: new.example",
        "Write the trust domain that the mesh was started with; a new one needs a new mesh.",
    ),
)


_SETTINGS: Final = (
    Explanation(
        "BS1601",
        "StepsNotAscending",
        "Steps that do not ascend",
        "Every wave or traffic step must be larger than the one before.",
        "shares: [25, 5, 100]",
        "Sort the steps.",
    ),
    Explanation(
        "BS1602",
        "StepsNotComplete",
        "Steps that do not end in 100",
        "The change would never be complete.",
        "shares: [5, 25]",
        "Add 100 as the last step.",
    ),
    Explanation(
        "BS1603",
        "TrafficWithImmediate",
        "Steps and no steps at once",
        "Immediate means everyone at once; traffic steps mean the opposite.",
        "rollout: {strategy: Immediate, traffic: [10, 100]}",
        "Remove one of the two.",
    ),
    Explanation(
        "BS1604",
        "SoakTooLong",
        "A wave soaks longer than it may last",
        "soak is the least and deadline the longest time of a wave.",
        "rollout: {soak: 20m, deadline: 10m}",
        "Lower soak or raise deadline.",
    ),
    Explanation(
        "BS1605",
        "DeadlineZero",
        "No time for evidence",
        "With a deadline of 0s every wave would end before anything is known.",
        "rollout: {deadline: 0s}",
        "Give a deadline; `strategy: Immediate` in a document skips the waves.",
    ),
    Explanation(
        "BS1606",
        "ConfirmTooShort",
        "Leases end too soon",
        "Proxies report once a second; a lease of a few seconds ends whenever a few reports are late.",
        "rollout: {confirmWithin: 1s}",
        "Give at least 5s; the default of 60s outlasts an operator's fail-over.",
    ),
    Explanation(
        "BS1607",
        "ToleranceOrder",
        "Tolerance not above margin",
        "A wave passes when it is surely less than tolerance worse, and fails when it is surely more than margin "
        "worse. With margin above tolerance a wave could do both.",
        "rollout: {tolerance: 0.1, margin: 0.2}",
        "Raise tolerance or lower margin.",
    ),
    Explanation(
        "BS1608",
        "ExpectRefusedSource",
        "Refusals of nobody in particular",
        "expectRefused takes refusals out of the evidence. For everybody it would blind the rollout for a deny-all.",
        'expectRefused: [{source: "*"}]',
        "Name one identity (spiffe://.../ns/.../sa/...) or a network.",
    ),
    Explanation(
        "BS1609",
        "ExpectRefusedPath",
        "Not a path",
        "The path begins with `/` and may end in `*`.",
        "expectRefused: [{source: 10.2.0.0/16, path: admin}]",
        "Write `/admin` or `/admin/*`.",
    ),
    Explanation(
        "BS1610",
        "HoldWithImmediate",
        "A hold that never happens",
        "Immediate rollouts do not wait for traffic.",
        "rollout: {strategy: Immediate, onNoTraffic: hold}",
        "Leave onNoTraffic out.",
    ),
)

_JUDGING: Final = (
    Explanation(
        "BS1701",
        "GuardrailExpression",
        "A guardrail's condition is no CEL",
        "The expression cannot be compiled, names something that is not there, or gives something else than true or false.",
        "expression: object.spec.rules.all(r, r.retry.attempts <= )",
        "Mend the expression; `object`, `oldObject`, `operation` and `change` are what it may name.",
    ),
    Explanation(
        "BS1702",
        "GuardrailDenied",
        "A guardrail forbids this change",
        "A Guardrail that is live says of a changed document that it must not be so. The message names its line.",
        "",
        "Change the document, or the guardrail in a commit of its own.",
    ),
    Explanation(
        "BS1703",
        "GuardrailWarned",
        "A guardrail warns of this change",
        "A Guardrail of severity `Warn` does not hold for a changed document. The commit is valid all the same.",
        "",
        "Read the guardrail's message; nothing has to be done.",
    ),
    Explanation(
        "BS1704",
        "GuardrailAudited",
        "A guardrail notes this change",
        "A Guardrail of severity `Audit` does not hold for a changed document. It is only noted.",
        "",
        "Nothing has to be done.",
    ),
    Explanation(
        "BS1705",
        "ExpectationFailed",
        "A request would not go where the repository expects it to",
        "An Expectation says what must become of a request, and with this commit something else would. The message names "
        "the line that decides.",
        "expect: {outcome: Routed, timeout: 3s}",
        "`backstay route test` shows the whole way of the request. Mend the route or policy, or the Expectation.",
    ),
    Explanation(
        "BS1706",
        "ExpectationWaiting",
        "An Expectation cannot be checked yet",
        "It is about the requests of a workload that the registry does not have.",
        "",
        "Check the name in `spec.from`; if it is right, nothing has to be done.",
    ),
    Explanation(
        "BS1707",
        "AccessWidened",
        "A change lets somebody in who was kept out",
        "Requests that were refused before would be admitted. Reviews say this first, as a warning.",
        "",
        "If it is meant, nothing has to be done; `backstay review --fail-on widening` makes it a failure.",
    ),
    Explanation(
        "BS1708",
        "AccessNarrowed",
        "A change keeps somebody out who was let in",
        "Requests that were admitted before would be refused.",
        "",
        "If such requests are still sent, say so with `rollout.expectRefused`, or the rollout takes them for harm.",
    ),
    Explanation(
        "BS1709",
        "OutcomeChanges",
        "A change gives requests another outcome",
        "Requests would go elsewhere, in other shares, or under other limits.",
        "",
        "Nothing has to be done; `backstay route test` shows one of them in full.",
    ),
)

_GATEWAYS: Final = (
    Explanation(
        "BS1801",
        "DuplicateListener",
        "Two listeners of one name",
        "Routes and counters name listeners, so names differ within a Gateway.",
        "listeners: [{name: web, port: 8080}, {name: web, port: 8081}]",
        "Rename one of them.",
    ),
    Explanation(
        "BS1802",
        "ListenerPortTaken",
        "A port that is taken",
        "A port speaks one protocol, belongs to one Gateway of a workload, and is none of the proxy's own (15000, 15001, "
        "15006, 15021, 15090).",
        "listeners: [{name: a, port: 8080}, {name: b, port: 8080, protocol: TLS}]",
        "Use another port, or put both listeners into one Gateway with one protocol.",
    ),
    Explanation(
        "BS1803",
        "DuplicateListenerHost",
        "A host twice at one port",
        "Listeners of a port are told apart by their hosts; a listener without hosts serves `*`.",
        "listeners: [{name: a, port: 8080}, {name: b, port: 8080}]",
        "Give them different hosts.",
    ),
    Explanation(
        "BS1804",
        "ListenerTls",
        "A listener's TLS settings do not fit its protocol",
        "HTTPS needs the name of a secret, the other protocols have no use for one. Only plaintext HTTP can be redirected, and "
        "only to an HTTPS listener of the same Gateway. Keys never stand in git.",
        "listeners: [{name: web, port: 8443, protocol: HTTPS}]",
        "Add `tls: {secretRef: {name: ...}}`, or change the protocol.",
    ),
    Explanation(
        "BS1805",
        "NotAGateway",
        "No gateway opens these ports",
        "A Gateway's ports are opened by gateway workloads: on one machine those with `gateway: true` in the workloads file.",
        "selector: {workloads: [sa-webapp]}",
        "Name a gateway workload of the document's namespace.",
    ),
    Explanation(
        "BS1806",
        "UnknownGateway",
        "A Route names a Gateway or listener that is not there",
        "parentRefs name Gateways of the same commit by name, namespace and, if wanted, sectionName (a listener).",
        "parentRefs: [{name: pubilc}]",
        "Mend the name, or add the Gateway.",
    ),
    Explanation(
        "BS1807",
        "HostNotServed",
        "No listener serves a Route's host",
        "A Route holds where its hosts and those of a listener overlap; this host overlaps with none.",
        "hosts: [shop.example.org] at a listener with hosts: ['*.example.com']",
        "Add the host to a listener, or take it out of the Route.",
    ),
    Explanation(
        "BS1808",
        "PassthroughRule",
        "A rule that would have to read what is passed through",
        "A listener of protocol TLS sees the name in the handshake and nothing else: paths, headers and retries mean nothing "
        "there.",
        "rules: [{matches: [{path: {value: /a}}], backendRefs: [{name: a}]}]",
        "Leave only backendRefs, or let the gateway end TLS (protocol HTTPS).",
    ),
)

_SOURCE: Final = (
    Explanation(
        "BS2001",
        "AuthenticationFailed",
        "The git server refused the credentials",
        "Wrong or expired token, key or user, or an unknown host key.",
        "",
        "Renew the credentials; for ssh, give the server's host key.",
    ),
    Explanation(
        "BS2002",
        "GitOperationFailed",
        "Git could not do it",
        "The server cannot be reached or answers oddly, git is missing or too old, or the disk is full; the message "
        "holds git's own words. What is live stays live, and it is tried again.",
        "",
        "Follow the message; `backstay check` tries the connection.",
    ),
    Explanation(
        "BS2003",
        "Timeout",
        "The git server is too slow",
        "Git did not finish in time and was stopped. What is live stays live, and it is tried again.",
        "",
        "Look at the network and the server; a shallow or smaller repository is quicker.",
    ),
    Explanation(
        "BS2004",
        "DubiousOwnership",
        "The folder belongs to somebody else",
        "Git does not read repositories of other users, because their settings could run programs.",
        "",
        "Run the operator as the folder's owner, or change the owner; the message has the command.",
    ),
    Explanation(
        "BS2005",
        "URLInvalid",
        "Not an address of a repository",
        "Only https, ssh and, on the local platform, folders are read.",
        "url: ext::sh -c true",
        "Write `https://host/team/mesh.git` or `ssh://git@host/team/mesh.git`.",
    ),
    Explanation(
        "BS2006",
        "RefNotFound",
        "No such branch, tag or commit",
        "The repository does not have what is to be followed.",
        "branch: mian",
        "Correct the name, or push it.",
    ),
    Explanation(
        "BS2007",
        "NotFastForward",
        "History was rewritten",
        "The new commit does not follow the one before (a force-push), and that is not allowed here.",
        "git push --force",
        "Push a commit on top of the old one, or allow it on purpose.",
    ),
    Explanation(
        "BS2008",
        "ForcePushed",
        "History was rewritten",
        "The commit before is no ancestor of this one. It is followed all the same, as a new commit is.",
        "git push --force",
        "Nothing, if it was meant; protect the branch at the forge if not.",
    ),
    Explanation(
        "BS2009",
        "FetchFailed",
        "The repository could not be read",
        "The last look at git failed; the message has the reason. What is live stays live.",
        "",
        "Follow the reason in the message; it is tried again by itself.",
    ),
    Explanation(
        "BS2010",
        "CommitInvalid",
        "A commit is invalid and changed nothing",
        "The commit has errors; the mesh goes on with what it had.",
        "",
        "`backstay validate` shows all of them with file, line and column; push a mended commit.",
    ),
    Explanation(
        "BS2011",
        "ValidationFailed",
        "The newest commit is invalid",
        "The same, as the condition of the repository.",
        "",
        "`backstay validate` shows all problems; push a mended commit.",
    ),
)

_ROLLOUT: Final = (
    Explanation(
        "BS3001",
        "VerdictFail",
        "The change did harm and went back",
        "The candidate did surely worse than stable at the same moment; the sentence says how many requests failed, "
        "why, and which line is responsible.",
        "",
        "Mend the document and push; what failed is held until it changes. `backstay rollout retry` tries it as it is.",
    ),
    Explanation(
        "BS3002",
        "RevisionHeld",
        "The revision is held",
        "Its documents failed or were aborted by a person; they stay at their stable content, other changes go on.",
        "",
        "Push a change of the held documents, revert them, or say `backstay rollout retry`.",
    ),
    Explanation(
        "BS3003",
        "HeldDependency",
        "The revision needs a held document",
        "It refers to something that only a held document brings.",
        "",
        "Mend the held document first.",
    ),
    Explanation(
        "BS3004",
        "TooLittleTraffic",
        "Not enough requests to judge",
        "The workload had too few requests before the deadline; it is listed as unproven.",
        "",
        "Nothing, if that is fine; `onNoTraffic: hold` waits for a person instead.",
    ),
    Explanation(
        "BS3005",
        "SharedHarmSuspected",
        "Both sides fail more than before",
        "Failures towards a destination rose for callers with and without the change; the last wave was taken back to "
        "see whether they fall.",
        "",
        "Wait for the outcome; look at the destination.",
    ),
    Explanation(
        "BS3006",
        "RolloutFailed",
        "The rollout failed",
        "The change did harm, or a proxy refused it; it was rolled back and its documents are held.",
        "",
        "Read the sentence; mend the document and push, or say `backstay rollout retry`.",
    ),
    Explanation(
        "BS3007",
        "RolledBack",
        "The revision was rolled back",
        "Stable serves again everywhere.",
        "",
        "As for a failed rollout: mend and push.",
    ),
    Explanation(
        "BS3008",
        "RolloutFailing",
        "The change does harm and waits for a person",
        "The verdict is fail, and onFail says pause.",
        "rollout: {onFail: pause}",
        "`backstay rollout abort` takes it back, `backstay rollout promote` goes on.",
    ),
    Explanation(
        "BS3009",
        "RolloutHolding",
        "The rollout neither goes on nor back",
        "It cannot be judged now: too little traffic, or no reports. Nothing advances and nothing is rolled back.",
        "",
        "Wait for traffic, or decide: `backstay rollout promote` or `abort`.",
    ),
    Explanation(
        "BS3010",
        "NoTraffic",
        "A wave passed without proof",
        "Too few requests until the deadline, and onNoTraffic says proceed; the workloads are listed as unproven.",
        "",
        "Nothing, if that is fine; `onNoTraffic: hold` waits for a person instead.",
    ),
    Explanation(
        "BS3011",
        "HarmSuspected",
        "Failures rose on both sides",
        "Failures towards a destination rose for callers with and without the change, so the cohorts cannot tell. "
        "The last wave is taken back to see whether they fall.",
        "",
        "Wait for the outcome; look at the destination.",
    ),
    Explanation(
        "BS3012",
        "NotRestored",
        "Some proxies did not confirm stable",
        "After a rollback they neither acked nor stayed connected. Their leases end by themselves, and then they "
        "serve stable.",
        "",
        "Look at the named proxies: `backstay proxy status`.",
    ),
    Explanation(
        "BS3013",
        "NotRecovered",
        "The rollback did not help",
        "Failures did not fall after the rollback, so something else is wrong as well.",
        "",
        "Look at the destination and at other changes of the same time: `backstay timeline`.",
    ),
    Explanation(
        "BS3014",
        "StageRestarted",
        "A stage began again",
        "Proxies left the candidate while stable ones were cut off too: that is no evidence against the change.",
        "",
        "Look at the operator and the network between.",
    ),
    Explanation(
        "BS3015",
        "BakeSuspected",
        "A live change may do harm",
        "Failures rose while the change was still watched; some requests go to the config from before, to compare.",
        "",
        "Wait for the outcome.",
    ),
    Explanation(
        "BS3016",
        "OrderRefused",
        "The rollout cannot do that now",
        "A finished or failing rollout takes no such order.",
        "backstay rollout promote",
        "`backstay rollout status` shows the phase; retry after it has ended.",
    ),
    Explanation(
        "BS3017",
        "ProxyLeftOut",
        "A wave goes on without a proxy",
        "It is lost, or its own surroundings (a full disk, say) keep it from taking the config.",
        "",
        "Look at the named proxy: `backstay proxy status`.",
    ),
)

_PROXIES: Final = (
    Explanation(
        "BS4001",
        "SchemaVersion",
        "The proxy is older than its config",
        "The config was made by a newer operator than the sidecar understands; it keeps what it has.",
        "",
        "Restart the workload with the newer sidecar.",
    ),
    Explanation(
        "BS4002",
        "LeaseEnded",
        "A proxy left the candidate by itself",
        "It had no acked report within confirmWithin, so nobody could have taken the candidate back.",
        "",
        "Look at the operator and the network between; the rollout begins again by itself.",
    ),
    Explanation(
        "BS4003",
        "Restarts",
        "A proxy left the candidate after restarts",
        "It restarted twice within a minute under the candidate.",
        "",
        "Look at the sidecar's log; what makes a sidecar exit is a bug worth reporting.",
    ),
    Explanation(
        "BS4004",
        "ControlLost",
        "A proxy lost the operator under the candidate",
        "Proxies with the stable config kept theirs, so the candidate itself is the likely cause.",
        "",
        "Look at what the change does to the way to the operator.",
    ),
    Explanation(
        "BS4005",
        "ProtocolMismatch",
        "Proxy and operator speak different versions",
        "Their ranges of protocol versions do not overlap.",
        "",
        "Upgrade the older of the two.",
    ),
    Explanation(
        "BS4006",
        "EnrolmentRefused",
        "A proxy was not let in",
        "Its token is unknown, used up or expired, or it asked for another identity than its own.",
        "",
        "Look at the operator's log for the reason; restart the workload to get a new token.",
    ),
    Explanation(
        "BS4007",
        "CertificateExpired",
        "A proxy's certificate has expired",
        "It could not renew it in time, mostly because the operator was away for half a certificate's life.",
        "",
        "Start the operator; the proxy renews by itself, or enrols again when restarted.",
    ),
    Explanation(
        "BS4008",
        "ConfigRefused",
        "A proxy refused a config",
        "The message has its reason. Its content: the rollout fails at once; its surroundings: the proxy is left out.",
        "",
        "Follow the reason in the message.",
    ),
    Explanation(
        "BS4009",
        "MissingBackend",
        "A config without a backend that it names",
        "A route sends requests to a backend that is not in the same config: a bug of the operator.",
        "",
        "Please report it with `backstay support-bundle`.",
    ),
    Explanation(
        "BS4010",
        "EngineFailed",
        "The proxy's engine broke on a config",
        "The engine raised an error while it took the config: a bug of the sidecar; it keeps the config it has.",
        "",
        "Please report it with `backstay support-bundle` and the sidecar's log.",
    ),
    Explanation(
        "BS4011",
        "PartUnavailable",
        "The operator does not have what it offered",
        "A part of the config was forgotten between offer and request; it is offered again.",
        "",
        "Nothing; report it if it comes back.",
    ),
    Explanation(
        "BS4012",
        "StaleEpoch",
        "An old operator was refused",
        "A newer operator has taken over; the proxy hears only that one.",
        "",
        "Stop the older of the two operators.",
    ),
    Explanation(
        "BS4013",
        "DiskFull",
        "A proxy cannot store its config",
        "The disk is full. The proxy keeps serving what it has, and is left out of the wave.",
        "",
        "Free space at the named proxy's state folder.",
    ),
    Explanation(
        "BS4014",
        "DiskReadOnly",
        "A proxy cannot store its config",
        "The file system is read-only. The proxy keeps serving what it has, and is left out of the wave.",
        "",
        "Make the proxy's state folder writable.",
    ),
    Explanation(
        "BS4015",
        "DiskError",
        "A proxy cannot store its config",
        "The file system reports an error. The proxy keeps serving what it has, and is left out of the wave.",
        "",
        "Look at the named proxy's state folder.",
    ),
    Explanation(
        "BS4016",
        "IdentityRefused",
        "A proxy is not who it says",
        "Its certificate or token belongs to another workload, or to one that is gone.",
        "",
        "Restart the workload; look at the operator's log for the reason.",
    ),
    Explanation(
        "BS4017",
        "SlowProxy",
        "A proxy was cut off because it does not read",
        "Its queue of messages was full. It connects again and gets everything anew.",
        "",
        "Look at the proxy's processor and network.",
    ),
    Explanation(
        "BS4018",
        "NoProxies",
        "No proxy runs this",
        "The document concerns workloads of which no instance is connected.",
        "",
        "Start the workload under the mesh.",
    ),
    Explanation(
        "BS4019",
        "ProxiesNotSynced",
        "Not every proxy has the newest config",
        "Some proxies have not acked yet, or are away; they get it when they come back.",
        "",
        "`backstay proxy status` lists them.",
    ),
    Explanation(
        "BS4020",
        "WentBack",
        "A proxy left the candidate by itself",
        "Its lease ended, it restarted twice within a minute, or it lost the operator; the message says which.",
        "",
        "As for LeaseEnded, Restarts or ControlLost.",
    ),
)

_PODS: Final = (
    Explanation(
        "BS4101",
        "ForeignMesh",
        "Another mesh injects this pod as well",
        "Istio or Linkerd would put a proxy into this pod, or has done so; two proxies cannot share a pod's traffic.",
        'labels: {sidecar.istio.io/inject: "true"}',
        'Switch one of them off: `sidecar.istio.io/inject: "false"`, `linkerd.io/inject: disabled`, or '
        "`backstay.dev/inject: disabled`.",
    ),
    Explanation(
        "BS4102",
        "ReservedName",
        "A pod uses a name of the proxy's",
        "A container or volume is called as the proxy's own, or a container mounts a volume of the proxy, in "
        "which its key and its token lie.",
        "volumeMounts: [{name: backstay-token, mountPath: /token}]",
        "Give it another name. A pod that holds a half-made proxy is injected anew without it.",
    ),
    Explanation(
        "BS4103",
        "ReservedPort",
        "A container wants a port of the proxy's",
        "15000, 15001, 15006, 15021 and 15090 are taken in every pod that is injected.",
        "ports: [{containerPort: 15021}]",
        "Let the application listen somewhere else, or label the pod `backstay.dev/inject: disabled`.",
    ),
    Explanation(
        "BS4104",
        "ReservedUser",
        "A container runs as the proxy's user",
        "What user and group 1337 send is not redirected, so that this container would speak past its proxy.",
        "securityContext: {runAsUser: 1337}",
        "Run it as another user.",
    ),
    Explanation(
        "BS4105",
        "AnnotationInvalid",
        "An annotation for the proxy cannot be read",
        "A pod with half of its wishes would surprise more than one that is refused.",
        "annotations: {backstay.dev/exclude-inbound-ports: metrics}",
        "Write what the message expects; docs/kubernetes.md has all annotations.",
    ),
    Explanation(
        "BS4106",
        "PodUnreadable",
        "Something in a pod has the wrong form",
        "What was to be injected is not a pod as the API knows it.",
        "containers: 5",
        "Mend the field that the message names.",
    ),
    Explanation(
        "BS4107",
        "NamespaceUnknown",
        "The webhook does not know the pod's namespace",
        "The API server could not be asked just now, or the namespace is gone already; whoever makes the pod "
        "tries again.",
        "",
        "Wait; if it stays, `kubectl backstay check` says what the operator cannot reach.",
    ),
    Explanation(
        "BS4108",
        "TokenInvalid",
        "A token was not issued by this cluster",
        "An enrolment came with something that is no ServiceAccount token, or one of another cluster.",
        "",
        "Look who asks: the operator's log names proxy and address. Proxies of a restored cluster need their "
        "pods made anew.",
    ),
    Explanation(
        "BS4109",
        "TokenExpired",
        "A token has expired",
        "The kubelet renews the token in a pod in good time; this one was kept by somebody, or the node's "
        "kubelet hangs.",
        "",
        "Look whether the node is well; the proxy reads its token anew at each attempt.",
    ),
    Explanation(
        "BS4110",
        "TokenAudience",
        "A token is for somebody else",
        "It was made for another audience than `backstay-ca`; a token for the API server proves nothing here.",
        "",
        "Use the volume that injection adds; do not point the proxy at the pod's default token.",
    ),
    Explanation(
        "BS4111",
        "TokenUnbound",
        "A token is bound to no pod",
        "Made by hand (`kubectl create token`), it would be good from anywhere until it ends.",
        "kubectl create token default --audience backstay-ca",
        "Let the proxy use the token of its own pod.",
    ),
    Explanation(
        "BS4112",
        "PodGone",
        "A proxy's pod is not there any more",
        "The token or certificate is of a pod that has ended, or of an earlier one of the same name.",
        "",
        "Nothing, if the pod was deleted; else look for who keeps its token.",
    ),
    Explanation(
        "BS4113",
        "ProxyMismatch",
        "A proxy calls itself by another's name",
        "It brought the token of another pod than the one it says it is.",
        "",
        "Look into the pod that the log names: somebody may be trying identities.",
    ),
    Explanation(
        "BS4114",
        "AddressMismatch",
        "A token was shown from another address than its pod's",
        "Stolen tokens are worth nothing elsewhere. If every proxy is refused so, something between pods and "
        "operator changes addresses (a masquerading CNI, a proxy of its own).",
        "",
        "Exclude the operator's Service from masquerading; else look for who holds the token.",
    ),
    Explanation(
        "BS4115",
        "AccountMismatch",
        "A pod does not have the account of its token",
        "The API server's words contradict each other; this should not happen.",
        "",
        "Report it with the operator's log.",
    ),
    Explanation(
        "BS4116",
        "IdentityMismatch",
        "A certificate is not the one of the proxy that shows it",
        "Its SPIFFE ID is another than that of the pod the proxy calls itself by.",
        "",
        "Look into the pod that the log names.",
    ),
    Explanation(
        "BS4117",
        "ReviewUnavailable",
        "The API server could not judge a token",
        "It did not answer, or not with a judgement; the proxy tries again, and serves what it has meanwhile.",
        "",
        "See whether the API server is well.",
    ),
    Explanation(
        "BS4118",
        "TokenMissing",
        "An enrolment came without a token",
        "The proxy has no token file, it is empty, or it is far longer than any token.",
        "",
        "Look for the volume `backstay-token` in the pod; a pod that was injected by hand may lack it.",
    ),
    Explanation(
        "BS4119",
        "NotAServiceAccount",
        "A token is a person's",
        "Good as it may be, it does not belong to a ServiceAccount; proxies have no other identity.",
        "",
        "Let the proxy use the token of its own pod.",
    ),
)

_OPERATOR: Final = (
    Explanation(
        "BS5001",
        "StateUnavailable",
        "The state cannot be read or written",
        "The state file is locked by another operator, damaged, or the disk is full. Nothing was overwritten; proxies "
        "go on with what they have.",
        "",
        "Follow the message: stop the other operator, free space, or restore the file from a copy.",
    ),
    Explanation(
        "BS5002",
        "OperatorFault",
        "The operator itself failed",
        "A bug of Backstay: the step was given up, stable serves on.",
        "",
        "Please report it with `backstay support-bundle`.",
    ),
    Explanation(
        "BS5017",
        "SecretMissing",
        "A gateway's certificate is not there",
        "A Gateway's listener names a secret that the platform does not have, or whose key does not belong to its "
        "certificate. Callers of its hosts are refused in the handshake, or get the certificate it had before.",
        "tls: {secretRef: {name: shop}}",
        "Create it: a Secret of type kubernetes.io/tls in the Gateway's namespace, or on one machine `tls.crt` and `tls.key` "
        "in the folder `<state folder>/secrets/<namespace>/<name>`.",
    ),
    Explanation(
        "BS5101",
        "YAMLInvalid",
        "The workloads file is not YAML",
        "The file given with --workloads cannot be read.",
        "",
        "Mend the text at the line and column.",
    ),
    Explanation(
        "BS5102",
        "EmptyFile",
        "The workloads file is empty",
        "There is nothing to run.",
        "",
        "`backstay init` writes an example.",
    ),
    Explanation(
        "BS5103",
        "SchemaInvalid",
        "The workloads file has a wrong shape",
        "A field is unknown, missing or of the wrong type.",
        "",
        "Mend the field at the line and column; `backstay init` writes an example.",
    ),
    Explanation(
        "BS5104",
        "DuplicateName",
        "A name is given twice in the workloads file",
        "Services and workloads are told apart by their names.",
        "",
        "Rename one of the two.",
    ),
    Explanation(
        "BS5105",
        "PortNotFound",
        "A workload has no such port",
        "A service of the workloads file names a port that its workload does not listen on.",
        "",
        "Add the port to the workload, or correct the service.",
    ),
    Explanation(
        "BS5106",
        "PortConflict",
        "Two listeners on one port",
        "Two entries of the workloads file ask for the same local port.",
        "",
        "Give one of them another port.",
    ),
    Explanation(
        "BS5107",
        "PortTaken",
        "A port is in use",
        "Another program listens on it.",
        "",
        "Stop the other program or choose another port.",
    ),
    Explanation(
        "BS5108",
        "RegistryDoubted",
        "Half of all instances vanished at once",
        "The list of what runs suddenly had half as many instances or none. That is more often a broken list than a broken "
        "mesh, so endpoints are taken away only when a second list says the same.",
        "",
        "Nothing if instances were really stopped; otherwise look at the platform.",
    ),
    Explanation(
        "BS5109",
        "EndpointsChanged",
        "A service lost its last endpoint",
        "No ready instance is behind this service port any more; calls are answered 503 no-upstream.",
        "",
        "Start an instance, or look at why the last one is not ready: `backstay get workloads`.",
    ),
)

_TENANCY: Final = (
    Explanation(
        "BS5201",
        "NamespaceClaimed",
        "Another MeshRepository owns this namespace",
        "A namespace follows one repository; of two that want it, the older one keeps it, and the other is not read at "
        "all.",
        "",
        "Delete one of the two, or take the namespace out of `spec.allow.namespaces` of one.",
    ),
    Explanation(
        "BS5202",
        "NamespaceNotGranted",
        "A namespace has not granted itself to this repository",
        "A repository may speak for its own namespace. For another one, whoever runs the cluster has to say so on the "
        "Namespace itself, which people of other namespaces cannot edit.",
        "",
        "`kubectl annotate namespace NAME backstay.dev/repository=NAMESPACE/REPOSITORY`.",
    ),
    Explanation(
        "BS5203",
        "NamespaceNotAllowed",
        "A document is in a namespace of somebody else",
        "Documents of a MeshRepository may be in the namespaces it owns; one document elsewhere makes the whole commit "
        "invalid, so that no half of it takes effect.",
        "metadata: {name: sa-logic, namespace: not-ours}",
        "Move the document into a namespace of this repository, or have the namespace granted and listed in "
        "`spec.allow.namespaces`.",
    ),
    Explanation(
        "BS5204",
        "KindNotAllowed",
        "A document of a kind that this repository may not hold",
        "`spec.allow.kinds` of the MeshRepository lists what may be in it.",
        "",
        "Move the document to the repository that may hold it, or list its kind.",
    ),
    Explanation(
        "BS5205",
        "PruneGuard",
        "A commit removes too many documents at once",
        "Most of what was there is gone: usually a folder was moved or a wrong path is configured. Nothing was changed.",
        "",
        "Bring the documents back; if they are to go, raise `spec.pruneGuard.maxPercent` for that commit.",
    ),
    Explanation(
        "BS5206",
        "HandEdited",
        "A projection of git was changed by hand",
        "MeshIntents and MeshRollouts are written by the operator; what is changed there by hand takes no effect and was "
        "put back.",
        "kubectl edit meshintent route.sa-logic",
        "Change the document in git; give orders by `kubectl backstay rollout` or the annotation `backstay.dev/order`.",
    ),
    Explanation(
        "BS5207",
        "SpecInvalid",
        "A MeshRepository cannot be understood",
        "It was written before its schema was there, or by a newer version.",
        "",
        "Apply it again; the API server then says what is wrong.",
    ),
)

EXPLANATIONS: Final[tuple[Explanation, ...]] = (
    *_FILES, *_SHAPE, *_REFERENCES, *_ROUTES, *_SECURITY, *_SETTINGS, *_JUDGING, *_GATEWAYS,
    *_SOURCE, *_ROLLOUT, *_PROXIES, *_PODS, *_OPERATOR, *_TENANCY,
)  # fmt: skip

CODES: Final[Mapping[str, Explanation]] = {explanation.code: explanation for explanation in EXPLANATIONS}
"""By code."""
_BY_REASON: Final[Mapping[str, Explanation]] = {explanation.reason: explanation for explanation in EXPLANATIONS}


def code_of(reason: str) -> str:
    """`BS1403` of `WeightSum`; "" for a reason that needs no explanation (`Succeeded`)."""
    found = _BY_REASON.get(reason)
    return found.code if found else ""


def explain(name: str) -> Explanation | None:
    """The explanation of a code or a reason, however it is capitalised; None if there is none."""
    wanted = name.strip().lower()
    return next((item for item in EXPLANATIONS if wanted in (item.code.lower(), item.reason.lower())), None)


def suggestions(name: str) -> tuple[str, ...]:
    """Codes and reasons that contain what was asked for, for `did you mean`."""
    wanted = name.strip().lower()
    names = (text for item in EXPLANATIONS for text in (item.code, item.reason))
    return tuple(text for text in names if wanted and wanted in text.lower())
