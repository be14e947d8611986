import pytest

from dataseg.config.extends import expand
from dataseg.config.renamed import with_current_names
from dataseg.structures import UserError


def test_configurations_of_0_1_get_todays_names():
    old = {"image_size": 64, "flip": 0.0, "eval_size": 96, "eval_max_size": 128, "eval_flip": True, "batch_size": 2}
    new = {
        "batch_size": 2,
        "train_transform": {"image_size": 64, "flip": 0.0},
        "eval_transform": {"size": 96, "max_size": 128},
        "test_time_augmentation": {"flip": True},
    }
    found = with_current_names({"exp": "a", "data": {"class_path": "data_modules.CoTraining", "init_args": old}})
    assert found == {"exp": "a", "data": {"class_path": "data_modules.CoTraining", "init_args": new}}
    assert with_current_names(found) == found
    assert with_current_names({"exp": "a", "data": None}) == {"exp": "a", "data": None}


@pytest.mark.parametrize("word", ["--data.image_size=64", "--data.init_args.image_size=64"])
def test_an_old_name_on_the_command_line_brings_the_new_one(word):
    with pytest.raises(UserError, match=r"data\.image_size is called data\.train_transform\.image_size now"):
        expand(["fit", word])


def test_an_old_name_in_a_file_brings_the_new_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: { init_args: { eval_size: 64 } }\n")
    with pytest.raises(UserError, match=r"mine\.yaml: data\.eval_size is called data\.eval_transform\.size now"):
        expand(["fit", f"--config={path}"])
