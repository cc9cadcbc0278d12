"""The memory of a pass is counted to the byte, and the batch that is chosen fits."""

import pytest
import torch

from lib.ground import batching, nets
from lib.record.files import UserError


def test_peak_counts_what_lives_at_the_same_time():
    x = torch.zeros(1000)  # 4,000 bytes, there before

    def call():
        a = x + 1  # 4,000
        b = a * 2  # 8,000
        del a
        c = b.view(10, 100)  # shares b's memory
        return (c + 1).sum()  # b and the sum of c: 8,000, then 4 more

    assert batching.peak_bytes(call) == 8004
    assert batching.peak_bytes(lambda: x.view(10, 100)) == 0


@torch.no_grad()
def test_batch_fits_and_is_not_timid():
    net = nets.small_unet(16)
    model = nets.eps_model(net)
    gigabytes = 0.02
    batch = batching.batch_for_memory(model, (1, 16, 16), gigabytes)

    def used(n):
        return batching.peak_bytes(lambda: model(torch.zeros(n, 1, 16, 16), torch.zeros(n, dtype=torch.long)))

    allowed = batching.SHARE * gigabytes * batching.GIB
    assert used(batch) <= allowed < used(int(1.3 * batch))
    assert batching.batch_for_memory(model, (1, 16, 16), 2 * gigabytes) == pytest.approx(2 * batch, rel=0.1)
    assert batching.batch_for_memory(model, (1, 16, 16), 100, limit=64) == 64


def test_too_little_memory():
    model = nets.eps_model(nets.small_unet(16))
    with pytest.raises(UserError, match="memory: 1e-05 GiB given; one sample of"):
        batching.batch_for_memory(model, (1, 16, 16), 1e-5)
