"""Make the demo base from scratch on one CPU core: VAE, text features, diffusion transformer.

    python tests/demo/pretrain.py --minutes-vae 11 --minutes-dit 50 --minutes-decoder 5 --threads 1 --out DIR
    python tests/demo/pretrain.py --sample sheet.png

Every few minutes the state goes to a temporary folder (--state) and the averaged weights to the files that ComfyUI
loads, so that a run which was cut off goes on where it stopped. A stage of 0 minutes is skipped; without a VAE or a
transformer to train, the files in --out are taken as they are.
"""

import argparse
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import demo_base as base
import shapes
import torch
from demo_base import LATENT, Files
from progress import Progress, adamw, split_optimizers
from torch import Tensor, nn


def clutter(rng: random.Random, count: int, px: int) -> Tensor:
    """Pictures with up to three more shapes of any size: the VAE should not care what a picture shows."""

    def one() -> Tensor:
        image = shapes.draw(shapes.random_scene(rng), px, px)
        for _ in range(rng.randrange(4)):
            x, y, size = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.1, 0.5)
            image = shapes.draw(replace(shapes.random_scene(rng), x=x, y=y, size=size), px, px, canvas=image)
        return image

    return torch.stack([one() for _ in range(count)])


def picture_loss(out: Tensor, image: Tensor) -> Tensor:
    """L1 + L2 + half the L1 of the differences between neighbouring pixels, which keeps edges sharp."""
    error = out - image
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.5 * edges


def train_vae(seconds: float, files: Files, state: Path, seed: int) -> None:
    """`picture_loss` with noise on the latents. The last fifth of the time is at 96 pixels, the rest at 64."""
    rng, vae = random.Random(seed), base.new_vae(seed)
    progress = Progress(vae, state / "vae.state.pt", seconds, [adamw(list(vae.parameters()))])

    def loss(done: float) -> Tensor:
        image = (clutter(rng, 8, 64) if done < 0.8 else clutter(rng, 4, 96))[:, :, None] * 2 - 1
        # A perfectly flat picture makes zero vectors, and the gradient of RMS_norm there is NaN.
        latent = vae.encode(image + 0.01 * torch.randn_like(image))
        out = vae.decode(latent + 0.15 * latent.detach().std() * torch.randn_like(latent))
        return picture_loss(out, image) + 1e-4 * latent.square().mean()

    def publish(average: dict[str, Tensor]) -> None:
        tuned = base.new_vae()
        tuned.load_state_dict(average)
        standardise_(tuned, clutter(random.Random(seed), 96, 96)[:, :, None] * 2 - 1)
        base.save(tuned.state_dict(), files.vae)

    progress.run(loss, publish)


def train_decoder(seconds: float, files: Files, state: Path, seed: int) -> None:
    """Sharpen the decoder alone. Latents stay what they are, so this may follow the transformer's training."""
    rng, vae = random.Random(seed + 1), base.load_vae(files.vae).requires_grad_(False)
    weights = [*vae.decoder.requires_grad_(True).parameters(), *vae.conv2.requires_grad_(True).parameters()]
    progress = Progress(vae, state / "decoder.state.pt", seconds, [adamw(weights, 1e-3)])

    def loss(done: float) -> Tensor:
        image = (clutter(rng, 3, 96) if rng.random() < 0.3 else shapes.batch(rng, 3, 96, 96)[0])[:, :, None] * 2 - 1
        with torch.no_grad():
            latent = vae.encode(image)
            noise = 0.1 * LATENT.latents_std * torch.randn_like(latent)
        return picture_loss(vae.decode(latent + noise), image)

    progress.run(loss, lambda average: base.save(average, files.vae))


@torch.no_grad()
def standardise_(vae: nn.Module, images: Tensor) -> None:
    """Fold an affine map into the two 1x1x1 convolutions around the latent, in place.

    z' = a z + b per channel, such that Wan21.process_in(encode(images)) has mean 0 and deviation 1; decode() undoes it.
    """
    latent = vae.encode(images)
    mean, std = latent.mean((0, 2, 3, 4)), latent.std((0, 2, 3, 4)).clamp(min=1e-3)
    a = LATENT.latents_std.flatten() / std
    b = LATENT.latents_mean.flatten() - mean * a
    vae.conv1.weight[:16] *= a.view(-1, 1, 1, 1, 1)
    vae.conv1.bias[:16] = vae.conv1.bias[:16] * a + b
    vae.conv2.weight /= a.view(1, -1, 1, 1, 1)
    vae.conv2.bias -= vae.conv2.weight.flatten(1) @ b


class Pool:
    """Latents of one picture size, drawn and encoded once and then slowly replaced by new ones."""

    def __init__(self, vae: nn.Module, rng: random.Random, count: int, width: int, height: int) -> None:
        self.vae, self.rng, self.size, self.next = vae, rng, (width, height), 0
        parts = [self._new(32) for _ in range(count // 32)]
        self.latents = torch.cat([latents for latents, _ in parts])
        self.captions = [caption for _, captions in parts for caption in captions]

    @torch.no_grad()
    def _new(self, count: int) -> tuple[Tensor, list[str]]:
        images, captions = shapes.batch(self.rng, count, *self.size)
        return LATENT.process_in(self.vae.encode(images[:, :, None] * 2 - 1)), captions

    def refresh(self, count: int) -> None:
        latents, captions = self._new(count)
        places = slice(self.next, self.next + count)
        self.latents[places], self.captions[places] = latents, captions
        self.next = (self.next + count) % len(self.captions)

    def take(self, count: int, dropout: float = 0.1) -> tuple[Tensor, list[str]]:
        """A random batch; a share of its captions is empty, for classifier-free guidance."""
        picks = [self.rng.randrange(len(self.captions)) for _ in range(count)]
        return self.latents[picks], ["" if self.rng.random() < dropout else self.captions[i] for i in picks]


def sigmas(count: int, shift: float = 4.0) -> Tensor:
    """Noise levels in 0..1: stratified, then shifted to the noisy end, where the layout of a picture is decided."""
    even = (torch.randperm(count) + torch.rand(count)) / count
    return (shift * even / (1 + (shift - 1) * even)).clamp(min=0.005)


def flow_loss(dit: nn.Module, latents: Tensor, context: Tensor) -> Tensor:
    """Mean square error of the velocity noise - latents at random noise levels."""
    sigma, noise = sigmas(len(latents)), torch.randn_like(latents)
    noisy = torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        velocity = dit(noisy, sigma * 1000, context, transformer_options={})
    return (velocity.float() - (noise - latents)).square().mean()


# Picture sizes: how many latents are kept of each, and its share of the steps.
SIZES = {(96, 96): (4096, 0.78), (112, 80): (512, 0.05), (80, 112): (512, 0.05), (128, 128): (1024, 0.12)}


def train_dit(seconds: float, files: Files, state: Path, seed: int) -> None:
    dit = base.new_dit(seed)
    progress = Progress(dit, state / "dit.state.pt", seconds, split_optimizers(dit))
    rng = random.Random(f"{seed} {progress.step}")
    torch.manual_seed(rng.randrange(2**31))
    vae = base.load_vae(files.vae).requires_grad_(False)
    words = base.Words(base.new_words())
    pools = {size: Pool(vae, rng, count, *size) for size, (count, _) in SIZES.items()}

    def loss(done: float) -> Tensor:
        pool = pools[rng.choices(list(SIZES), [share for _, share in SIZES.values()])[0]]
        if rng.random() < 1 / 16:
            pool.refresh(16)
        latents, captions = pool.take(32 if pool.size[0] < 128 else 16)
        return flow_loss(dit, latents, words(captions))

    with base.comfy_training():
        progress.run(loss, lambda average: base.save_dit(average, files.dit))


def sheet(files: Files, path: Path, px: int = 96, seed: int = 7, **settings: float | str) -> None:
    """Ten columns, one per shape, over all colours, backgrounds and patterns; made by the stock loaders."""
    pipeline, rng, images = base.Pipeline(files), random.Random(seed), []
    for row in range(6):
        for shape in shapes.SHAPES:
            scene = replace(shapes.random_scene(rng), shape=shape, fill="" if row < 5 else "striped")
            scene = replace(scene, pattern=("", "", *shapes.PATTERNS[1:], "")[row])
            images.append(pipeline(shapes.caption(scene), seed + len(images), px, px, **settings))
            print(len(images) - 1, shapes.caption(scene))
    frames = [nn.functional.pad(image, (1, 1, 1, 1)) for image in images]
    shapes.write_png(torch.cat([torch.cat(frames[i : i + 10], -1) for i in range(0, len(frames), 10)], -2), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes-vae", type=float, default=0)
    parser.add_argument("--minutes-dit", type=float, default=0)
    parser.add_argument("--minutes-decoder", type=float, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=base.HERE / "models", help="a ComfyUI models folder")
    parser.add_argument(
        "--state", type=Path, help="folder of the training states", default=Path(tempfile.gettempdir()) / "loom_demo"
    )
    parser.add_argument("--sample", type=Path, metavar="PNG", help="write a sheet of pictures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    files = Files(args.out)
    if args.minutes_vae:
        train_vae(args.minutes_vae * 60, files, args.state, args.seed)
    if args.minutes_dit:
        base.save_words(files.words)
        train_dit(args.minutes_dit * 60, files, args.state, args.seed)
    if args.minutes_decoder:
        train_decoder(args.minutes_decoder * 60, files, args.state, args.seed)
    if args.sample:
        sheet(files, args.sample)


if __name__ == "__main__":
    main()
