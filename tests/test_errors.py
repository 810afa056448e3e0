"""Messages about configurations."""

import json

import pytest

from project.errors import explain_parser_error, format_own_traceback

OPTIONAL = """Parser key "{key}":
  Does not validate against any of the Union subtypes
  Subtypes: [<class '{kind}'>, <class 'NoneType'>]
  Errors:
    - Expected a <class '{kind}'>
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: {value}"""
RATE = """Parser key "optimizer":
  Errors:
    - Problem with given class_path 'torch.optim.AdamW':
        Parser key "lr":
          - Expected a path but inf either not accessible or invalid
          Errors:
            - Expected a <class 'float'>
            - Expected a dot import path string: inf
          Given value: inf
    - Expected a <class 'NoneType'>
  Given value: NestedArg(key='lr', val='inf')"""
REQUIRED = """Parser key "trainer.callbacks":
  Errors:
    - Expected a <class 'list'>
    - Problem with given class_path 'some.EarlyStopping':
        the following arguments are required: monitor
  Given value: Namespace(class_path='some.EarlyStopping', init_args=Namespace(monitor=None))"""
TYPO = """Parser key "model":
  Errors:
    - Problem with given class_path 'some.Task':
        Parser key "loss":
          - Expected a path but torch.nn.MSELos either not accessible or invalid
          Errors:
            - Problem with given class_path 'torch.nn.MSELos':
                module 'torch.nn' has no attribute 'MSELos'
          Given value: torch.nn.MSELos
    - Expected a <class 'NoneType'>
  Given value: NestedArg(key='loss', val='torch.nn.MSELos')"""
CLASS = """Parser key "model":
  Errors:
    - Problem with given class_path 'some.Task':
        Parser key "intensity":
          Errors:
            - Expected a dot import path string: None
            - Expected a <class 'NoneType'>
          Given value: {'class_path': 'None'}
    - Expected a <class 'NoneType'>
  Given value: {'class_path': 'some.Task'}"""
NESTED = """Parser key "model":
  Errors:
    - Problem with given class_path 'some.Task':
        Parser key "width":
          Expected a <class 'int'>
  Given value: NestedArg(key='width', val='wide')"""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            OPTIONAL.format(key="data.crop", kind="int", value="None"),
            'data.crop: expected int, got "None"; no value is written null',
        ),
        (
            OPTIONAL.format(key="data.transforms", kind="list", value="some.Flip"),
            'data.transforms: expected list, got "some.Flip"; write a list: [some.Flip]',
        ),
        (RATE, 'optimizer.lr: expected float, got "inf"; write a finite number'),
        (REQUIRED, "trainer.callbacks: some.EarlyStopping needs monitor, in init_args"),
        (TYPO, "model.loss: there is no class \"torch.nn.MSELos\" (module 'torch.nn' has no attribute 'MSELos')"),
        (
            CLASS,
            'model.intensity: expected class, as package.module.Class, got "None"; no value is written null',
        ),
        (NESTED, 'model.width: expected int, got "wide"'),
    ],
)
def test_messages_of_the_parser_are_short(message, expected):
    assert explain_parser_error(message, []) == expected


def test_a_traceback_begins_in_own_code(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import json\n\n\ndef load():\n    return json.loads('{')  # the mistake\n")
    namespace: dict = {}
    exec(compile(file.read_text(), str(file), "exec"), namespace)
    with pytest.raises(ValueError, match="property") as error:
        namespace["load"]()
    error.value.__traceback__ = error.value.__traceback__.tb_next  # this test is own code too
    lines = format_own_traceback(error.value).splitlines()
    assert 'mine.py", line 5' in lines[1]
    assert "# the mistake" in lines[2]
    assert lines[-1].startswith("json.decoder.JSONDecodeError")


def test_an_error_of_a_library_alone_has_no_own_code():
    with pytest.raises(ValueError, match="property") as error:
        json.loads("{")
    error.value.__traceback__ = error.value.__traceback__.tb_next
    assert format_own_traceback(error.value) == ""
