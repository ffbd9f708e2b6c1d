"""competition.toml: every key is checked, and what it leaves open is inferred or asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from competition_kit.data.competition import load_competition
from competition_kit.data.rules import _CV_KEYS, _RULE_KEYS, CVRules, Rules, read_rules
from competition_kit.errors import InputError

TRAIN = "id,text,label\n1,a b,x\n2,c d,y\n3,e f,x\n"
TEST = "id,text\n7,g h\n8,i j\n"


def folder(place: Path, train: str = TRAIN, **files: str) -> Path:
    """Write train, and test, sample or toml as given."""
    names = {
        "test": "test.csv",
        "sample": "sample_submission.csv",
        "toml": "competition.toml",
    }
    (place / "train.csv").write_text(train, encoding="utf-8")
    for key, content in files.items():
        (place / names[key]).write_text(content, encoding="utf-8")
    return place


def refused(place: Path, train: str = TRAIN, **files: str) -> str:
    with pytest.raises(InputError) as caught:
        load_competition(folder(place, train, **files))
    return str(caught.value)


def inferred(place: Path, train: str = TRAIN, **files: str) -> tuple[Rules, str]:
    competition = load_competition(folder(place, train, **files))
    return competition.rules, "\n".join(competition.inferred)


# -- keys ---------------------------------------------------------------------------------------


def test_the_keys_are_exactly_the_fields_of_the_rules() -> None:
    assert set(_RULE_KEYS) | {"cv"} == set(Rules.__dataclass_fields__)
    assert set(_CV_KEYS) == set(CVRules.__dataclass_fields__)


@pytest.mark.parametrize("key", sorted(_RULE_KEYS))
def test_a_typo_in_a_key_says_what_was_meant(tmp_path: Path, key: str) -> None:
    message = refused(tmp_path, toml=f'{key}x = "a"\n')
    assert f"competition.toml: unknown key '{key}x', did you mean '{key}'?" in message


@pytest.mark.parametrize("key", sorted(_CV_KEYS))
def test_a_typo_in_a_cv_key_says_what_was_meant(tmp_path: Path, key: str) -> None:
    message = refused(tmp_path, toml=f'[cv]\n{key}x = "a"\n')
    assert f"unknown key 'cv.{key}x', did you mean '{key}'?" in message


@pytest.mark.parametrize("key", sorted(_RULE_KEYS))
@pytest.mark.parametrize("value", ["3.5", "{}", "2020-01-01", '""'])
def test_a_value_of_a_wrong_type_says_what_the_key_takes(
    tmp_path: Path, key: str, value: str
) -> None:
    message = refused(tmp_path, toml=f"{key} = {value}\n")
    assert f"competition.toml: '{key}' is " in message
    assert "; it takes a" in message or "; it takes the name" in message


@pytest.mark.parametrize("key", sorted(_CV_KEYS))
@pytest.mark.parametrize("value", ["true", "[]", "1.5"])
def test_a_cv_value_of_a_wrong_type_says_what_the_key_takes(
    tmp_path: Path, key: str, value: str
) -> None:
    message = refused(tmp_path, toml=f"[cv]\n{key} = {value}\n")
    assert f"competition.toml: 'cv.{key}' is " in message
    assert "; it takes a" in message or "; it takes the name" in message


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('task = "single-label"', "'task' is 'single-label', did you mean 'single_label'?"),
        ('submission = "proba"', "'submission' is 'proba', did you mean 'probability'?"),
        ('[cv]\nscheme = "stratify"', "'cv.scheme' is 'stratify', did you mean 'stratified'?"),
        ('[cv]\nscheme = "loo"', "it takes one of stratified, group, stratified_group, "),
    ],
)
def test_a_value_that_is_not_allowed_lists_what_is(tmp_path: Path, toml: str, said: str) -> None:
    assert said in refused(tmp_path, toml=toml)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[cv]\nfolds = 1", "1 folds; cross-validation needs 2 or more"),
        ("[cv]\nfolds = 0", "0 folds; cross-validation needs 2 or more"),
        ('text = ["a", "b", "c"]', "3 text columns"),
        ('text = ["text", "text"]', "'text' repeats 'text'"),
        ('classes = ["x", "x", "y"]', "'classes' repeats 'x'"),
        ('label = "label"\ntext = "label"', "'label' is a label and also the id or a text"),
        ('label = "id"', "'id' is a label and also the id or a text"),
        ('task = "single_label"\nlabel = ["label", "other"]', "2 label columns"),
        ('task = "single_label"\nlabel_separator = " "', "label_separator in a single-label task"),
        ('task = "multi_label"', "multi-label in one column without label_separator"),
        ('[cv]\nscheme = "multilabel"', "scheme 'multilabel' for a single-label task"),
        ('label_separator = " "\n[cv]\nscheme = "stratified"', "cannot stratify several labels"),
        ('label_separator = " "\nsubmission = "probabilities"', "is for single-label tasks"),
        ('[cv]\nscheme = "group"', "scheme 'group' without a group column"),
        ('[cv]\nscheme = "stratified_group"', "without a group column"),
        ('[cv]\nscheme = "predefined"', "scheme 'predefined' without folds"),
        ('submission = "probability"\npositive = "z"', "positive = 'z' is no class"),
        ('classes = ["x", "z"]', "row 3, column 'label': unknown label 'y'"),
        ('[cv]\ngroup = "dok"', "no column 'dok'"),
        ('encoding = "utf-9"', "unknown encoding 'utf-9'"),
        ("folds = 5", "unknown key 'folds'; write it below a line [cv]"),
        ('[cv]\nmetric = "mcc"', "unknown key 'cv.metric'; write it above the line [cv]"),
        ("cv = 5", "'cv' must be a table; write [cv]"),
        ("metric = macro_f1", "is not valid TOML"),
    ],
)
def test_rules_that_do_not_fit_are_refused_with_a_remedy(
    tmp_path: Path, toml: str, said: str
) -> None:
    message = refused(tmp_path, toml=toml)
    assert said in message
    assert "; " in message


def test_a_toml_in_another_encoding_is_refused(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "competition.toml").write_bytes('title = "情感"'.encode("gb18030"))
    with pytest.raises(InputError, match=r"competition\.toml: is not valid TOML"):
        load_competition(tmp_path)


def test_a_toml_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "competition.toml"
    path.write_bytes(b'\xef\xbb\xbftitle = "t"\r\n[cv]\r\nfolds = 3\r\n')
    assert read_rules(path) == {"title": "t", "cv": {"folds": 3}}


def test_what_the_toml_says_is_not_reported_as_inferred(tmp_path: Path) -> None:
    toml = (
        'id = "id"\ntext = "text"\nlabel = "label"\ntask = "single_label"\nmetric = "mcc"\n'
        'submission = "label"\n[cv]\nscheme = "kfold"\nfolds = 2\n'
    )
    rules, lines = inferred(tmp_path, toml=toml)
    assert lines == ""
    assert (rules.metric, rules.cv) == ("mcc", CVRules("kfold", 2))


def test_the_command_line_overrides_the_toml(tmp_path: Path) -> None:
    place = folder(tmp_path, toml='metric = "mcc"\n[cv]\nscheme = "kfold"\nfolds = 2\n')
    rules = load_competition(place, metric="accuracy", scheme="stratified", folds=3).rules
    assert (rules.metric, rules.cv.scheme, rules.cv.folds) == ("accuracy", "stratified", 3)
    with pytest.raises(InputError, match="0 folds"):
        load_competition(place, folds=0)


# -- inference ----------------------------------------------------------------------------------


def test_a_plain_folder_is_single_label(tmp_path: Path) -> None:
    rules, lines = inferred(tmp_path, test=TEST, sample="id,label\n7,x\n8,x\n")
    assert (rules.id, rules.text, rules.label) == ("id", ("text",), ("label",))
    assert (rules.task, rules.submission, rules.metric) == ("single_label", "label", "macro_f1")
    assert (rules.cv.scheme, rules.cv.folds) == ("stratified", 5)
    for key in ("id", "text", "label", "task", "submission", "metric", "cv.scheme"):
        assert f"{key} = " in lines


def test_train_alone_is_enough(tmp_path: Path) -> None:
    rules, lines = inferred(tmp_path)
    assert (rules.id, rules.text, rules.label) == ("id", ("text",), ("label",))
    assert 'id = "id" (name)' in lines


def test_kaggle_columns_with_a_float_sample_want_a_probability(tmp_path: Path) -> None:
    rules, _ = inferred(
        tmp_path,
        "qid,question_text,target\n00a,why so,0\n00b,what now,1\n",
        test="qid,question_text\n00c,who else\n",
        sample="qid,prediction\n00c,0.5\n",
    )
    assert (rules.id, rules.text, rules.label) == ("qid", ("question_text",), ("target",))
    assert (rules.task, rules.submission) == ("single_label", "probability")


def test_a_sample_of_labels_zero_and_one_wants_labels(tmp_path: Path) -> None:
    rules, _ = inferred(
        tmp_path,
        "id,text,target\n1,a b,0\n2,c d,1\n",
        test=TEST,
        sample="id,target\n7,0\n8,0\n",
    )
    assert rules.submission == "label"


def test_a_sample_with_a_column_for_each_class_wants_probabilities(tmp_path: Path) -> None:
    rules, _ = inferred(tmp_path, test=TEST, sample="id,x,y\n7,0.5,0.5\n8,0.5,0.5\n")
    assert (rules.label, rules.submission) == (("label",), "probabilities")


@pytest.mark.parametrize(("cell", "submission"), [("0.5", "probability"), ("0", "label")])
def test_label_columns_in_the_sample_make_it_multi_label(
    tmp_path: Path, cell: str, submission: str
) -> None:
    rules, _ = inferred(
        tmp_path,
        "id,comment_text,toxic,insult\n1,a b,1,0\n2,c d,0,0\n",
        test="id,comment_text\n7,g h\n",
        sample=f"id,toxic,insult\n7,{cell},{cell}\n",
    )
    assert (rules.task, rules.label) == ("multi_label", ("toxic", "insult"))
    assert (rules.submission, rules.cv.scheme) == (submission, "multilabel")


def test_a_separator_makes_one_column_multi_label(tmp_path: Path) -> None:
    rules, _ = inferred(tmp_path, toml='label_separator = " "\n')
    assert (rules.task, rules.label) == ("multi_label", ("label",))


def test_two_text_columns_are_a_pair(tmp_path: Path) -> None:
    rules, lines = inferred(
        tmp_path,
        "id,sentence1,sentence2,label\n1,a b,c d,0\n2,e f,g h,1\n",
        test="id,sentence1,sentence2\n7,a,b\n",
    )
    assert rules.text == ("sentence1", "sentence2")
    assert 'text = ["sentence1", "sentence2"]' in lines


def test_numbers_are_no_text_even_with_gaps(tmp_path: Path) -> None:
    rules, _ = inferred(tmp_path, "id,text,likes,label\n1,a b,,x\n2,c d,3,y\n3,e,-1.5,x\n")
    assert rules.text == ("text",)


def test_columns_that_only_train_or_only_test_has_are_no_text(tmp_path: Path) -> None:
    rules, _ = inferred(
        tmp_path,
        "id,text,label\n1,a b,x\n2,c d,y\n",
        test="id,text,source,lang\n7,g h,web,en\n8,i j,web,en\n",
    )
    assert (rules.text, rules.label) == (("text",), ("label",))


def test_among_many_text_columns_the_usual_name_wins(tmp_path: Path) -> None:
    rules, _ = inferred(
        tmp_path,
        "id,keyword,location,text,target\n1,fire,here,a b,0\n2,flood,there,c d,1\n",
        test="id,keyword,location,text\n7,fire,there,g h\n",
    )
    assert (rules.text, rules.label) == (("text",), ("target",))


def test_a_text_column_that_has_a_labels_name_is_not_taken_as_label(tmp_path: Path) -> None:
    train = "id,category,sentiment\n1,a b,x\n2,c d,y\n"
    rules, _ = inferred(tmp_path, train, toml='text = "category"\n')
    assert rules.label == ("sentiment",)
    (tmp_path / "test.csv").write_text("id,category\n7,e f\n", encoding="utf-8")
    (tmp_path / "competition.toml").unlink()
    rules = load_competition(tmp_path).rules
    assert (rules.text, rules.label) == (("category",), ("sentiment",))


def test_group_and_fold_columns_are_neither_label_nor_text(tmp_path: Path) -> None:
    train = "id,text,doc,part,y\n1,a b,d one,f one,x\n2,c d,d two,f two,y\n"
    toml = '[cv]\ngroup = "doc"\nfold = "part"\n'
    rules, _ = inferred(tmp_path, train, test="id,text\n7,g h\n", toml=toml)
    assert (rules.text, rules.label, rules.cv.scheme) == (("text",), ("y",), "predefined")


def test_a_text_column_may_be_called_like_a_scheme(tmp_path: Path) -> None:
    train = "id,group,label\n1,a b,x\n2,c d,y\n3,e f,x\n4,g h,y\n"
    toml = '[cv]\nscheme = "group"\ngroup = "id"\nfolds = 2\n'
    rules, _ = inferred(tmp_path, train, toml=toml)
    assert (rules.text, rules.label) == (("group",), ("label",))


@pytest.mark.parametrize(
    ("toml", "scheme"),
    [
        ("", "stratified"),
        ('[cv]\ngroup = "id"', "stratified_group"),
        ('label_separator = " "', "multilabel"),
        ('label_separator = " "\n[cv]\ngroup = "id"', "group"),
        ('[cv]\nfold = "id"', "predefined"),
    ],
)
def test_the_scheme_follows_from_task_group_and_fold(
    tmp_path: Path, toml: str, scheme: str
) -> None:
    assert inferred(tmp_path, toml=toml)[0].cv.scheme == scheme


def test_the_id_is_the_samples_first_column_and_said_so(tmp_path: Path) -> None:
    rules, lines = inferred(
        tmp_path,
        "key,text,label\n1,a b,x\n2,c d,y\n",
        test="key,text\n7,g h\n",
        sample="key,label\n7,x\n",
    )
    assert rules.id == "key"
    assert 'id = "key" (first column of sample_submission)' in lines


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ("key,text,label\n1,a b,x\n2,c d,y\n", "no id column found among 'key', 'text'"),
        ("id,text,stance\n1,a b,x\n2,c d,y\n", "no label column found among"),
        ("id,p,q,r,label\n1,a,b,c,x\n2,d,e,f,y\n", "cannot tell the text columns among 'p', 'q'"),
        ("id,n,label\n1,5,x\n2,6,y\n", "cannot tell the text columns among 'n'"),
    ],
)
def test_a_doubt_is_one_error_with_the_line_to_write(tmp_path: Path, train: str, said: str) -> None:
    message = refused(tmp_path, train)
    assert said in message
    assert f"say it in {tmp_path / 'competition.toml'}: " in message
    assert ' = "..."' in message or ' = ["..."]' in message


def test_label_columns_stand_in_the_remedy_as_the_toml_takes_them(tmp_path: Path) -> None:
    names = ["toxic", "very toxic", 'so "called"', "back\\slash", "中文", "rare"]
    header = ",".join('"' + name.replace('"', '""') + '"' for name in names)
    train = f"id,text,note,{header}\n1,a b,x,0,1,0,1,0,0\n2,c d,y,1,0,1,0,1,0\n"
    message = refused(tmp_path, train, test="id,text\n7,g h\n")
    line = message.partition("competition.toml: ")[2]
    assert line == (
        'label = ["toxic", "very toxic", "so \\"called\\"", "back\\\\slash", "中文", "rare"]'
    )
    rules, _ = inferred(tmp_path, train, test="id,text\n7,g h\n", toml=line)
    assert rules.label == tuple(names)
    assert rules.task == "multi_label"


@pytest.mark.parametrize(("test", "said"), [("id,text\n7,g h\n", '["hot"]'), (None, '["hot"]')])
def test_one_column_of_flags_among_others_is_the_label_to_name(
    tmp_path: Path, test: str | None, said: str
) -> None:
    train = "id,text,note,hot\n1,a b,x y,0\n2,c d,y z,1\n"
    message = refused(tmp_path, train, **({} if test is None else {"test": test}))
    assert message.endswith(f"label = {said}")
