import re

import pytest

from hyperiqa import __main__ as predict
from hyperiqa.base.public_models import PUBLIC_MODELS


def test_models_lists_every_public_model_on_80_columns(capsys):
    with pytest.raises(SystemExit) as left:
        predict.parse(["--models"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and max(map(len, text.splitlines())) <= 80
    for name, model in PUBLIC_MODELS.items():
        assert f"\n{name}\n" in text
        assert all(value in text for value in vars(model).values())
        assert re.fullmatch("[0-9a-f]{64}", model.sha256)
    # pyiqa's file names carry the first digits.
    assert PUBLIC_MODELS["koniq"].file.endswith(f"-{PUBLIC_MODELS['koniq'].sha256[:8]}.pth")
