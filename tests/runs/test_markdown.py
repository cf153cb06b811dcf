import pytest

from aigc.errors import UserError
from aigc.runs.markdown import END, START, fill, number, table


@pytest.mark.parametrize(("value", "text"), [(0.26412, "0.2641"), (53761.4, "53,761"), (9999.7, "10,000"), (-3, "-3")])
def test_numbers_have_no_powers_of_ten(value, text):
    assert number(value) == text


def test_a_cell_stays_a_cell():
    text = table(["a|b", "c"], [["1\n2", "x|y"], ["", "z"]])
    assert text == "| a\\|b | c |\n| --- | --- |\n| 1 2 | x\\|y |\n|  | z |"


def test_only_what_stands_between_the_marks_is_replaced(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{START}\nold\n{END}\nafter é\n", encoding="utf-8")
    fill(path, "new\n\n")
    fill(path, "newer")
    assert path.read_text(encoding="utf-8") == f"before\n{START}\nnewer\n{END}\nafter é\n"
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]
    path.write_text(f"{END} {START}")
    with pytest.raises(UserError, match="put them where the table should go"):
        fill(path, "new")
    assert path.read_text() == f"{END} {START}"
