"""Reading YAML that people write."""

from project.yaml_files import read_yaml


def test_exponents_without_a_point_are_numbers_unless_they_are_in_quotes(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("a: [1e-3, -2E+4, 1.5e3, 1.e2]\nb: ['1e-3', 1e, e3, 1e3x]\n")
    assert read_yaml(file) == {"a": [0.001, -20000.0, 1500.0, 100.0], "b": ["1e-3", "1e", "e3", "1e3x"]}
