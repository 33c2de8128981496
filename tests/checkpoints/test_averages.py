"""Averages and EMAs that are known by their names, and names that only look like it."""

from __future__ import annotations

import pytest

from belay_cli.checkpoints.order.averages import average_by_name, ema_by_name


def words(text: str) -> list[str]:
    return text.split()


AVERAGES = {
    "an average of icefall": "epoch-30-avg-9 checkpoint-100-avg-9 exp-epoch-30-avg-9-use",
    "an average of the best epochs, of ESPnet": "valid.acc.ave valid.acc.ave_10best ave_12best valid.loss.ave_5best",
    "an average of WeNet": "avg_30 avg30 avg_5_best",
    "an average of stochastic weight averaging": "swa_model swa-last net_swa swa swa5",
    "a soup of models": "model_soup greedy_soup soup",
    "an average of checkpoints": "averaged_model averaged model_avg x_average checkpoint_avg avg_checkpoints "
    "avg_last_10_checkpoint belay-average exponential_moving_average averaged.pth AVERAGED "
    "AveragedModel_9 averagedmodel_9 avgmodel_step_10 step_9_avg_model_0.9",
    "an average of iterates": "polyak_9 net-polyak lawa_10",
}
NO_AVERAGES = (
    "model_avg_pool_3 avgpool avg_pooling epoch=3-avg_loss=0.5 val_loss_avg=0.5-epoch=1 best_avg_f1_3 "
    "average_precision_0.5 swap swan save_3 wave_3 octave cave coverage model step_100 swahili epoch_3 step_3_ema "
    "soups epoch_9_avg_train_loss_0.3 epoch_9_avg_mAP_0.3 epoch_9_mAP_avg_0.8 loss_moving_avg=0.80 step_9_avg_q_0.8 "
    "epoch9-ave0.3 epoch_9_avg_mAP_31 ppo_9_avg_return_200"
)


@pytest.mark.parametrize(("what", "stem"), [(w, stem) for w, stems in AVERAGES.items() for stem in stems.split()])
def test_averages(what: str, stem: str) -> None:
    assert average_by_name(stem) == what


@pytest.mark.parametrize("stem", NO_AVERAGES.split())
def test_no_averages(stem: str) -> None:
    assert average_by_name(stem) is None


@pytest.mark.parametrize(
    "stem",
    words(
        "ema_0.9999_010000 model_step_100_ema unet-EMA ema_model ema-5 network-snapshot-000100-ema phema-0000067-0.050 "
        "step_5_ema_0.9999 modelEMA EMAModel_9 EmaModel_9 emaweights_9 v1-5-pruned-emaonly ema ema2"
    ),
)
def test_emas(stem: str) -> None:
    assert ema_by_name(stem) == "an EMA by its name"


@pytest.mark.parametrize(
    "stem", words("schema cinema gemma schema_1 gemma-2b emanuel hEMAtology sd-nonema-pruned model_no_ema pre-ema x")
)
def test_no_emas(stem: str) -> None:
    assert ema_by_name(stem) is None
