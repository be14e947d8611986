"""Two ranks over gloo against one."""

import metric_cases as cases
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dataseg.metrics import MaskAveragePrecision, MeanIoU, PanopticQuality

VOCABULARY = cases.make_vocabulary(4)
SHARES = {"uneven": [[0, 2, 3, 4, 6], [1, 5]], "none on rank 0": [[], [0, 1, 2, 3, 4, 5, 6]]}


def images():
    rng = np.random.default_rng(3)
    panoptic = [cases.random_panoptic_image(rng, 4, 0.2, 0.2, 0.1) for _ in range(7)]
    instance = [cases.random_instance_image(rng, 5 + 9 * i, 4, 0.2, 0.1, False) for i in range(7)]
    return panoptic, instance


def scored(share):
    """Metrics that have seen the images of one share."""
    panoptic, instance = images()
    metrics = [PanopticQuality(VOCABULARY, areas="both"), MeanIoU(VOCABULARY), MaskAveragePrecision(VOCABULARY)]
    for index in share:
        for metric in metrics[:2]:
            metric.update(*panoptic[index].records(VOCABULARY), image_id=str(index))
        image = instance[index]
        metrics[2].update(image.prediction, image.target, str(image.image_id))
    return metrics


def figures(metrics):
    result = {}
    for metric in metrics:
        result.update({f"{type(metric).__name__}.{k}": v for k, v in metric.compute().items()})
        result.update({f"{type(metric).__name__}.{k}[]": v for k, v in metric.per_class().items()})
    return result


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {name: figures(scored(shares[rank])) for name, shares in SHARES.items()}
    messages = []
    for metric in scored([4]):  # both ranks score the same image
        try:
            metric.compute()
        except ValueError as error:
            messages.append(str(error))
    torch.save((found, messages), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("shares", SHARES)
def test_two_ranks_give_the_figures_of_one(two_ranks, shares):
    alone = figures(scored(range(7)))
    for found, _ in two_ranks:
        assert set(found[shares]) == set(alone)
        for name, value in alone.items():
            torch.testing.assert_close(found[shares][name], value, rtol=0, atol=1e-12, equal_nan=True, msg=name)


def test_an_image_scored_on_both_ranks_is_refused(two_ranks):
    for _, messages in two_ranks:
        assert len(messages) == 3
        assert all("toy: 1 image(s) were scored on more than one rank" in m for m in messages)
