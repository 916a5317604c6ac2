"""A training step written the plain way, as CLIP4Clip (Luo et al., 2021, arXiv:2104.08860) does it; `step` measures it.

Convolved patches, `nn.MultiheadAttention` with a causal mask, every token through every block and projection, texts
padded to `max_words`, frames that arrive as float64, and an optimizer that visits one parameter after the other. The
names of the weights are those of `modules.modeling.CLIP4Clip`, so that both start alike. Heads: meanP and wti.
"""

import torch
import torch.nn.functional as F
from torch import nn

from modules.module_clip import attention_heads, clip_sizes


class PlainLayerNorm(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float()).to(x.dtype)


class PlainQuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class PlainBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, attention_heads(width))
        self.ln_1, self.ln_2 = PlainLayerNorm(width), PlainLayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", PlainQuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(L, N, width) and a mask (L, L) that is added to the scores -> (L, N, width)."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class PlainTransformer(nn.Module):
    def __init__(self, width: int, layers: int):
        super().__init__()
        self.resblocks = nn.ModuleList(PlainBlock(width) for _ in range(layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(N, L, width) and a mask (L, L) -> (N, L, width)."""
        x = x.transpose(0, 1)
        for block in self.resblocks:
            x = block(x, mask)
        return x.transpose(0, 1)


class PlainVision(nn.Module):
    def __init__(self, sizes: dict[str, int]):
        super().__init__()
        width, patch = sizes["vision_width"], sizes["vision_patch_size"]
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((sizes["image_resolution"] // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = PlainLayerNorm(width), PlainLayerNorm(width)
        self.transformer = PlainTransformer(width, sizes["vision_layers"])
        self.proj = nn.Parameter(torch.empty(width, sizes["embed_dim"]))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, D)."""
        x = self.conv1(frames.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.to(x.dtype) + x.new_zeros(x.shape[0], 1, x.shape[-1])
        x = torch.cat([class_token, x], dim=1) + self.positional_embedding.to(x.dtype)
        x = self.transformer(self.ln_pre(x))
        return (self.ln_post(x) @ self.proj)[:, 0]


class PlainClip(nn.Module):
    def __init__(self, sizes: dict[str, int]):
        super().__init__()
        width = sizes["transformer_width"]
        self.visual = PlainVision(sizes)
        self.transformer = PlainTransformer(width, sizes["transformer_layers"])
        self.token_embedding = nn.Embedding(sizes["vocab_size"], width)
        self.positional_embedding = nn.Parameter(torch.empty(sizes["context_length"], width))
        self.ln_final = PlainLayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, sizes["embed_dim"]))
        self.logit_scale = nn.Parameter(torch.empty(()))

    def encode_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(A, T) -> (A, T, D)."""
        dtype, length = self.text_projection.dtype, input_ids.shape[1]
        x = self.token_embedding(input_ids).to(dtype) + self.positional_embedding[:length].to(dtype)
        mask = torch.full((length, length), -torch.inf, dtype=dtype, device=x.device).triu(1)
        return self.ln_final(self.transformer(x, mask)) @ self.text_projection


class PlainModel(nn.Module):
    """The loss of a batch with the head meanP or wti; loads the weights of a CLIP4Clip with that head."""

    def __init__(self, weights: dict[str, torch.Tensor], sim_header: str):
        super().__init__()
        sizes = clip_sizes({name.removeprefix("clip."): weight for name, weight in weights.items()})
        self.clip = PlainClip(sizes)
        if sim_header == "wti":
            self.text_weight_fc, self.video_weight_fc = (plain_weight_mlp(sizes["embed_dim"]) for _ in range(2))
        self.score = {"meanP": self.pooled, "wti": self.token_wise}[sim_header]
        self.load_state_dict(weights)

    def forward(self, input_ids, attention_mask, video, video_mask) -> torch.Tensor:
        """input_ids, attention_mask (G,T), video (G,V,3,H,W) float64 and normalised, video_mask (G,V) -> loss."""
        words = self.clip.encode_text(input_ids).float()
        frames = self.clip.visual(video.float().flatten(0, 1)).float().unflatten(0, video_mask.shape)
        logits = self.score(input_ids, words, frames, attention_mask, video_mask) * self.clip.logit_scale.exp()
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def pooled(self, input_ids, words, frames, attention_mask, video_mask) -> torch.Tensor:
        sentences = words[torch.arange(len(words), device=words.device), input_ids.argmax(dim=-1)]
        mask = video_mask.unsqueeze(-1).float()
        videos = (F.normalize(frames, dim=-1) * mask).sum(dim=1) / mask.sum(dim=1)
        return F.normalize(sentences, dim=-1) @ F.normalize(videos, dim=-1).T

    def token_wise(self, input_ids, words, frames, attention_mask, video_mask) -> torch.Tensor:
        word_weights = masked_softmax(self.text_weight_fc(words).squeeze(-1), attention_mask)
        frame_weights = masked_softmax(self.video_weight_fc(frames).squeeze(-1), video_mask)
        cosine = torch.einsum("atd,bvd->abtv", F.normalize(words, dim=-1), F.normalize(frames, dim=-1))
        cosine = torch.einsum("abtv,at->abtv", cosine, attention_mask.float())
        cosine = torch.einsum("abtv,bv->abtv", cosine, video_mask.float())
        text_to_video = torch.einsum("abt,at->ab", cosine.max(dim=3).values, word_weights)
        video_to_text = torch.einsum("abv,bv->ab", cosine.max(dim=2).values, frame_weights)
        return (text_to_video + video_to_text) / 2


def plain_weight_mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, 1))


def masked_softmax(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return logits.masked_fill(mask == 0, -torch.inf).softmax(dim=-1)


class PlainBertAdam(torch.optim.Optimizer):
    """`modules.optimization.BertAdam` at a constant rate, one parameter after the other."""

    def __init__(self, groups: list[dict], b1: float = 0.9, b2: float = 0.98, e: float = 1e-6):
        super().__init__(groups, {"b1": b1, "b2": b2, "e": e})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["next_m"], state["next_v"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                torch.nn.utils.clip_grad_norm_(parameter, 1.0)
                state["next_m"].mul_(group["b1"]).add_(parameter.grad, alpha=1 - group["b1"])
                state["next_v"].mul_(group["b2"]).addcmul_(parameter.grad, parameter.grad, value=1 - group["b2"])
                update = state["next_m"] / (state["next_v"].sqrt() + group["e"])
                if group["weight_decay"] > 0:
                    update += group["weight_decay"] * parameter
                parameter.add_(-(group["lr"] * update))
