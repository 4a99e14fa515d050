from backstay.sidecar.engines.python.clientcert import distinguished


def test_a_name_is_written_from_its_end() -> None:
    name = ((("countryName", "CH"),), (("organizationName", "Ann & Bob"),), (("commonName", "web"),))
    assert distinguished(name) == "CN=web,O=Ann & Bob,C=CH"


def test_parts_with_several_values_and_kinds_without_a_short_name() -> None:
    assert distinguished(((("commonName", "a"), ("serialNumber", "7")),)) == "CN=a+serialNumber=7"


def test_nothing_of_a_name_can_end_the_field_or_its_quotes() -> None:
    assert distinguished(((("commonName", 'a",b;c\r\nX: y\\'),),)) == 'CN=a\\"\\,b\\;c\\0D\\0AX: y\\\\'


def test_workloads_have_no_name() -> None:
    assert distinguished(()) == ""
