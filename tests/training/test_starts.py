from argparse import Namespace

import pytest
from helpers import save_teacher

from hyperiqa.base.errors import UserError
from hyperiqa.training.starts import StartingModel


def test_a_model_whose_weights_depend_on_the_size_of_patches_says_which(tmp_path):
    teacher = StartingModel(save_teacher(tmp_path / "teacher.pkl"))
    options = Namespace(patch_size=96, dropout=0, drop_path=None)
    with pytest.raises(UserError) as problem:
        teacher.model(None, options)
    assert str(problem.value) == (
        "--patch_size 96: expected 64, the size that the model was trained with: "
        f"{tmp_path}/teacher.pkl: its parameters do not fit the expected model: "
        "1 of another shape (timm.backbone.pos_embed)"
    )
