from pathlib import Path

import pytest

from backstay.adapters.processes.workloads_file import (
    MAX_FILE_BYTES,
    AppPort,
    WorkloadsFile,
    WorkloadsFileInvalid,
    parse,
    read,
)
from backstay.core.registry import Service, ServicePort, Workload

PATH = Path("w.yaml")
EXAMPLE = Path(__file__).parents[4] / "example-repo" / "workloads.yaml"


def parsed(text: str) -> WorkloadsFile:
    return parse(text.encode(), PATH)


def problems(text: str) -> list[str]:
    with pytest.raises(WorkloadsFileInvalid) as caught:
        parsed(text)
    return [str(problem) for problem in caught.value.problems]


def test_services_and_workloads_become_registry_values() -> None:
    file = parsed(
        """
namespace: shop
services:
- {name: web, ports: [{name: http, port: 80, targetPort: 5000}, {port: 9000, protocol: tcp}]}
workloads:
- name: web-v1
  serviceAccount: web
  services: [web]
  reaches: [sa-logic]
  command: [serve]
  ports: [5000, 9000, {port: 9100, protocol: tcp}]
- {name: batch, command: [work]}
"""
    )
    http = ServicePort(port=80, name="http", target_port=5000, protocol="http")
    tcp = ServicePort(port=9000, name="", target_port=9000, protocol="tcp")
    assert file.services() == {"web.shop": Service(name="web", namespace="shop", ports=(http, tcp))}
    assert file.workloads() == {
        "shop/web-v1": Workload(
            name="web-v1",
            namespace="shop",
            service_account="web",
            services=("web.shop",),
            ports=((5000, "http"), (9000, "tcp"), (9100, "tcp")),
            reaches=("sa-logic",),
        ),
        "shop/batch": Workload(name="batch", namespace="shop", service_account="batch"),
    }
    assert file.entries()["shop/web-v1"].ports == (5000, 9000, AppPort(port=9100, protocol="tcp"))


def test_entries_may_live_in_other_namespaces() -> None:
    file = parsed(
        """
namespace: shop
services: [{name: db, namespace: data, ports: [{port: 80}]}]
workloads:
- {name: db, namespace: data, services: [db], command: [x]}
- {name: backup, services: [db.data], command: [x]}
"""
    )
    assert {key: workload.services for key, workload in file.workloads().items()} == {
        "data/db": ("db.data",),
        "shop/backup": ("db.data",),
    }


def test_scalars_are_those_of_yaml_1_2() -> None:
    file = parsed("workloads: [{name: a, command: [x], env: {A: on, B: true, C: 012, D: 1.5, E: '1', F: 1_0}}]")
    assert dict(file.entries()["default/a"].env) == {"A": "on", "B": True, "C": 12, "D": 1.5, "E": "1", "F": "1_0"}


def test_the_sample_is_valid() -> None:
    assert sorted(read(EXAMPLE).workloads()) == [
        "shop/sa-feedback",
        "shop/sa-frontend",
        "shop/sa-logic-v1",
        "shop/sa-logic-v2",
        "shop/sa-logic-v3",
        "shop/sa-webapp",
        "shop/visitors",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "w.yaml:1:1: the file is empty, expected `workloads:` [EmptyFile]"),
        ("workloads: [", "w.yaml:1:13: not YAML: expected the node content, but found '<stream end>' [YAMLInvalid]"),
        (
            "workloads:\n- {name: a, command: &x [b]}",
            "w.yaml:2:22: anchors, aliases and tags are not allowed here [YAMLFeature]",
        ),
        (
            "workloads:\n- {name: !!str a, command: [b]}",
            "w.yaml:2:10: anchors, aliases and tags are not allowed here [YAMLFeature]",
        ),
        (
            "workloads:\n- name: a\n  name: b\n  command: [x]",
            "w.yaml:3:3: workloads[0]: duplicate key 'name' [DuplicateKey]",
        ),
        (
            "workloads:\n- name: a\n  command: [x]\n  replicas: many",
            "w.yaml:4:13: workloads[0].replicas: expected `int`, got `str` [SchemaInvalid]",
        ),
        (
            "workloads:\n- name: a\n  commmand: [x]",
            "w.yaml:2:3: workloads[0]: object contains unknown field `commmand` [SchemaInvalid]",
        ),
        (
            "workloads:\n- name: a\n",
            "w.yaml:2:3: workloads[0]: object missing required field `command` [SchemaInvalid]",
        ),
        ("hello", "w.yaml:1:1: expected `object`, got `str` [SchemaInvalid]"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, expected: str) -> None:
    assert problems(text) == [expected]


def test_all_broken_references_are_said_at_once() -> None:
    text = """
services:
- {name: web, ports: [{port: 80, targetPort: 5000}]}
- {name: web, ports: [{port: 81}]}
workloads:
- {name: a, command: [x], services: [wbe]}
- {name: b, command: [x], services: [web], ports: [6000], listen: [{localPort: 6000, host: web}]}
- {name: b, command: [x]}
"""
    assert problems(text) == [
        "w.yaml:4:10: services[1].name: 'web' is defined twice in namespace 'default' [DuplicateName]",
        (
            "w.yaml:6:38: workloads[0].services[0]: service 'wbe' is not defined, expected one of: web.default "
            "[ServiceNotFound]"
        ),
        "w.yaml:7:51: workloads[1].ports: port 81 of service 'web' is missing, expected it among [6000] [PortNotFound]",
        "w.yaml:7:80: workloads[1].listen[0].localPort: port 6000 is used twice by this workload [PortConflict]",
        "w.yaml:8:10: workloads[2].name: 'b' is defined twice in namespace 'default' [DuplicateName]",
    ]


def test_a_huge_file_is_refused_unread() -> None:
    with pytest.raises(WorkloadsFileInvalid) as caught:
        parse(b"#" * (MAX_FILE_BYTES + 1), PATH)
    assert str(caught.value) == "w.yaml: the file is larger than 1048576 bytes [LimitExceeded]"


def test_deep_nesting_is_a_problem_not_a_crash() -> None:
    assert problems("[" * 50_000) == ["w.yaml:1:17: nested more than 16 deep [LimitExceeded]"]


def test_bytes_that_are_no_text_are_a_problem() -> None:
    with pytest.raises(WorkloadsFileInvalid) as caught:
        parse(b"a: \xff\xfe", PATH)
    assert str(caught.value) == "w.yaml: not YAML: ReaderError [YAMLInvalid]"
