"""Every fault of `mutations.py` fits the code as it is: its text occurs once, and its tests are found."""

import shlex

import pytest
from mutations import FAULTS, ROOT, obstacle


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_text_that_a_fault_replaces_occurs_exactly_once_in_its_file(fault):
    assert obstacle(fault, ROOT) == ""
    assert fault.new != fault.old
    assert (ROOT / shlex.split(fault.tests)[0]).is_file()


def test_a_text_that_is_missing_or_not_unique_is_an_obstacle(tmp_path):
    fault = FAULTS[0]._replace(file="a.py", old="x = 1")
    assert obstacle(fault, tmp_path) == "a.py does not exist"
    for text, count in (("", 0), ("x = 1\n" * 2, 2)):
        (tmp_path / "a.py").write_text(text)
        assert f"has {count} times" in obstacle(fault, tmp_path)
