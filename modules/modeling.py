"""CLIP4Clip: CLIP's towers, a temporal aggregation of frames, and a head that scores texts against videos.

    model = CLIP4Clip.from_pretrained("cross-base", state_dict=None, task_config=args)
    loss = model(input_ids, segment_ids, input_mask, video, video_mask)   # in training

Shapes: A texts of T words, B videos of V frames, joint width D; in training A = B = the global batch G.
Heads: meanP, seqLSTM, seqTransf, tightTransf are CLIP4Clip's (Luo et al., 2021, arXiv:2104.08860); ti and wti are DRL's
token-wise interactions and xti its cross encoder (Wang et al., 2022, arXiv:2203.07111).
"""

import logging
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from modules.clip_weights import (
    OPENAI_MEAN,
    OPENAI_STD,
    clip_part,
    describe_clip,
    read_clip_weights,
    without_module_prefix,
)
from modules.configuration import POOLED_HEADERS, TIGHT_HEADERS, TOKEN_HEADERS, CLIP4ClipConfig, check_cross_model
from modules.distributed import gather_features, get_rank, get_world_size
from modules.initialization import WeightReport, load_weights
from modules.losses import CrossEn, channel_correlation, decorrelation_loss, token_correlation
from modules.module_clip import CLIP
from modules.module_cross import CrossModel, TransformerClip
from modules.token_interaction import (
    masked_softmax,
    token_interaction_in_blocks,
    uniform_weights,
    weight_mlp,
)

logger = logging.getLogger(__name__)


class CLIP4Clip(nn.Module):
    """CLIP (`clip`), the layers of the chosen head, and the loss."""

    def __init__(self, config: CLIP4ClipConfig, clip: CLIP, mean=OPENAI_MEAN, std=OPENAI_STD):
        super().__init__()
        self.config = config
        self.clip = clip
        self.weight_report = WeightReport()
        width, positions = clip.embed_dim, clip.context_length
        config.check_lengths(positions)

        if config.sim_header in TIGHT_HEADERS:
            self.cross = CrossModel(width, config.cross_num_hidden_layers, positions)
            self.similarity_dense = nn.Linear(width, 1)
        if config.aggregation != "none":
            # CLIP4Clip's seqLSTM checkpoints carry the positions too, though only seqTransf reads them
            self.frame_position_embeddings = nn.Embedding(positions, width)
            self.frame_position_embeddings.requires_grad_(config.aggregation == "seqTransf")
        if config.aggregation == "seqTransf":
            self.transformerClip = TransformerClip(width, config.cross_num_hidden_layers)
        if config.aggregation == "seqLSTM":
            self.lstm_visual = nn.LSTM(width, width, batch_first=True)
        if config.sim_header == "wti":
            self.text_weight_fc = weight_mlp(width, config.wti_arch)
            self.video_weight_fc = weight_mlp(width, config.wti_arch)
        self._initialize_heads()
        self.loss_fct = CrossEn()
        self.frame_statistics = tuple(zip(mean, std, strict=True))
        self.autocast_dtype: torch.dtype | None = None

    @classmethod
    def from_pretrained(
        cls, cross_model_name: str, state_dict=None, cache_dir: str | None = None, task_config=None
    ) -> "CLIP4Clip":
        """The model for `task_config` (a namespace of flags), with the weights of `state_dict`.

        Without CLIP's weights in `state_dict` they come from `pretrained_clip_name`. `.weight_report` and the log say
        what was loaded, what was newly initialized and which keys were unexpected. `cross_model_name` is CLIP4Clip's
        "cross-base": it names no file here, since all sizes come from the weights.
        Raises ValueError for an unknown name, a shape that differs or a missing weight, FileNotFoundError for a file.
        """
        check_cross_model(cross_model_name)
        config = CLIP4ClipConfig.from_namespace(task_config)
        source = describe_clip(config.pretrained_clip_name)
        if source.context_length is not None:  # of a file it is known only when that is read
            config.check_lengths(source.context_length)
        weights = without_module_prefix(state_dict or {})
        clip_weights = clip_part(weights)
        if not clip_weights:
            clip_weights = read_clip_weights(source, cache_dir)
            weights.update({"clip." + key: value for key, value in clip_weights.items()})
        clip = CLIP.from_state_dict(
            clip_weights,
            linear_patch=config.linear_patch,
            activation=source.activation,
            vision_heads=source.vision_heads,
            transformer_heads=source.transformer_heads,
        )
        model = cls(config, clip, source.mean, source.std)
        model.weight_report = load_weights(model, weights)
        model.weight_report.log()
        # weights do not tell these; an evaluation needs the --pretrained_clip_name of the training for them
        logger.info("activation %s, frames normalised by mean %s, std %s", source.activation, source.mean, source.std)
        return model

    def _initialize_heads(self) -> None:
        """BERT's start for the layers of the cross encoder and the positions: normal with std 0.02, biases 0."""
        heads = [
            module
            for name in ("cross", "similarity_dense", "frame_position_embeddings", "transformerClip")
            if (module := getattr(self, name, None)) is not None
        ]
        for layer in (layer for head in heads for layer in head.modules()):
            if isinstance(layer, (nn.Linear, nn.Embedding)):
                nn.init.normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)

    @property
    def is_token_head(self) -> bool:
        return self.config.sim_header in TOKEN_HEADERS

    @property
    def floats_per_pair(self) -> int:
        """About how many floats scoring one text with one video holds at once; tells how many pairs make a block."""
        if self.config.sim_header in TIGHT_HEADERS:
            # queries, keys, values, the four times wider hidden layer, and what goes around them
            return 12 * (1 + self.config.max_frames) * self.clip.embed_dim
        return 1

    @property
    def input_resolution(self) -> int:
        """Side of the square frames that the CLIP takes, in pixels."""
        return self.clip.visual.input_resolution

    def forward(self, input_ids, token_type_ids, attention_mask, video, video_mask) -> torch.Tensor | None:
        """Loss of the global batch in training, None in evaluation; over several ranks as `loss_of_features` says.

        input_ids, attention_mask (G/R,T), video (G/R,V,3,H,W) uint8 or normalised float, video_mask (G/R,V), each with
        or without the pair axis of size 1; `token_type_ids` is there for CLIP4Clip's batch order and not read.
        """
        if not self.training:
            return None
        features = self.encode(input_ids, token_type_ids, attention_mask, video, video_mask)
        return self.loss_of_features(*features, as_rows(attention_mask), as_rows(video_mask))

    def encode(self, input_ids, token_type_ids, attention_mask, video, video_mask) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of texts (A,1,D) or (A,T,D) and aggregated frames (B,V,D), of each text and video by itself."""
        sequence_output, visual_output = self.get_sequence_visual_output(
            input_ids, token_type_ids, attention_mask, video, video_mask
        )
        return sequence_output, self.aggregate_frames(visual_output, video_mask)

    def loss_of_features(self, sequence_output, frames, attention_mask, video_mask) -> torch.Tensor:
        """Training loss from this rank's features, as `encode` returns them, and masks (G/R,T), (G/R,V).

        Published gather: every rank returns the loss of the global batch (tightTransf: of its own pairs). Exact gather:
        this rank's share, whose mean over the ranks is that loss.
        """
        own = (sequence_output, frames, attention_mask, video_mask)
        decorrelated = (attention_mask, video_mask)
        if self.config.cdcr == 1 and self.is_token_head:
            # drawn before the gather, so that all ranks decorrelate the same matches
            decorrelated = (one_random_token(attention_mask), one_random_token(video_mask))
        everything = (*own, *decorrelated) if self.config.cdcr else own
        if not self.config.has_local_negatives:
            everything = gather_features(everything, reduce=self.config.has_exact_gather)
        if self.config.has_exact_gather and get_world_size() > 1:
            loss = self.local_loss(own, everything[:4])
        else:
            logits = self.score(*everything[:4])
            loss = self.contrastive_loss(logits, logits)
        if self.config.cdcr:
            loss = loss + self.config.cdcr_lambda * self.decorrelation(*everything[:2], *everything[4:])
        return loss

    def local_loss(self, own: tuple, everything: tuple) -> torch.Tensor:
        """Loss of this rank's texts against all videos, and of its videos against all texts.

        `own` are features and masks in the order of `score`, `everything` those of all ranks by a reducing gather. The
        loss's mean over the ranks, and after DDP the gradient, are those of one process on the whole batch. A rank
        scores 2 G^2 / R pairs instead of G^2, which is what makes a cross encoder affordable.
        """
        (texts, frames, text_mask, video_mask), (all_texts, all_frames, all_text_mask, all_video_mask) = own, everything
        own_texts = self.score(texts, all_frames, text_mask, all_video_mask)
        own_videos = self.score(all_texts, frames, all_text_mask, video_mask)
        return self.contrastive_loss(own_texts, own_videos, first_column=get_rank() * texts.shape[0])

    def contrastive_loss(self, text_rows, video_columns, first_column: int = 0) -> torch.Tensor:
        """Mean loss of N texts (N,G) that choose among videos, and N videos (G,N) that choose among texts."""
        return (self.loss_fct(text_rows, first_column) + self.loss_fct(video_columns.T, first_column)) / 2

    def decorrelation(self, sequence_output, frames, attention_mask, video_mask) -> torch.Tensor:
        """CDCR of the true pairs: of sentence and pooled vectors, or of matched tokens for the token heads."""
        if self.is_token_head:
            weights = self.token_weights(sequence_output, frames, attention_mask, video_mask)
            correlation = token_correlation(
                sequence_output, frames, attention_mask, video_mask, *weights,
                self.config.cdcr, self.config.wti_padding,
            )  # fmt: skip
        else:
            correlation = channel_correlation(*pooled_vectors(sequence_output, frames, video_mask))
        return decorrelation_loss(correlation, self.config.cdcr_alpha1, self.config.cdcr_alpha2)

    def get_sequence_output(self, input_ids, token_type_ids=None, attention_mask=None, shaped=False) -> torch.Tensor:
        """Ids (A,T) -> float32 sentence vectors (A,1,D), or all tokens (A,T,D) for the token heads.

        The ids may be shorter than the mask (`trim_padding`): the tokens are then filled up with zeros to the mask's T,
        so that every batch, and every rank, has the same. `token_type_ids` are CLIP4Clip's and not read. `shaped` says
        that the pair axis is gone already, which the shapes tell here and below.
        """
        input_ids = as_rows(input_ids)
        with self.encoder_precision():
            if not self.is_token_head:
                return self.clip.encode_text(input_ids).float().unsqueeze(1)
            words = self.clip.encode_words(input_ids).float()
        missing = 0 if attention_mask is None else attention_mask.shape[-1] - input_ids.shape[-1]
        return F.pad(words, (0, 0, 0, missing)) if missing else words

    def get_visual_output(self, video, video_mask, shaped=False, video_frame=-1) -> torch.Tensor:
        """Frames -> the encoder's float32 frame vectors (B,V,D), before temporal aggregation.

        `video` is (B,V,3,H,W), with axes of size 1 between or flattened to (B V,3,H,W); V is told by `video_mask`.
        """
        rows, length = as_rows(video_mask).shape
        frames = video.reshape(-1, *video.shape[-3:])
        with self.encoder_precision():
            vectors = self.clip.encode_image(self.normalize_frames(frames), length)
        return vectors.float().view(rows, length, vectors.shape[-1])

    def get_sequence_visual_output(
        self, input_ids, token_type_ids, attention_mask, video, video_mask, shaped=False, video_frame=-1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both of the above."""
        return (
            self.get_sequence_output(input_ids, token_type_ids, attention_mask, shaped),
            self.get_visual_output(video, video_mask, shaped, video_frame),
        )

    def encoder_precision(self):
        """The context in which towers and aggregation compute: autocast to `autocast_dtype`, if that is set.

        It belongs to the model, so that an evaluation encodes as the training did; scores and loss stay in float32.
        """
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.clip.logit_scale.device.type, dtype=self.autocast_dtype)

    def normalize_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 pixels (N,3,H,W) -> CLIP's normalised floats; float input is taken as normalised already."""
        if frames.is_floating_point():
            return frames
        normalized = torch.empty(frames.shape, dtype=self.clip.dtype, device=frames.device)
        # plain numbers, channel by channel: buffers would be broadcast over the ranks in every step
        for channel, (mean, std) in enumerate(self.frame_statistics):
            # (pixel / 255 - mean) / std, which reads and writes every pixel once
            offset = torch.tensor(-mean / std)
            torch.add(offset, frames[:, channel], alpha=1 / (255 * std), out=normalized[:, channel])
        return normalized

    def aggregate_frames(self, visual_output: torch.Tensor, video_mask: torch.Tensor) -> torch.Tensor:
        """Temporal aggregation with a residual, once per video: (B,V,D) -> (B,V,D); the identity for "none"."""
        video_mask = as_rows(video_mask)
        with self.encoder_precision():
            if self.config.aggregation == "seqTransf":
                positions = self.frame_position_embeddings.weight[: visual_output.shape[1]]
                return visual_output + self.transformerClip(visual_output + positions, video_mask)
            if self.config.aggregation == "seqLSTM":
                # valid frames come first, so that none of them sees the padding, which keeps its input
                return visual_output + self.lstm_visual(visual_output)[0] * video_mask.unsqueeze(-1)
        return visual_output

    def get_similarity_logits(
        self, sequence_output, visual_output, attention_mask, video_mask, shaped=False, loose_type=None
    ) -> tuple[torch.Tensor]:
        """Aggregate the frames and score every text against every video; the first element is (A,B).

        `loose_type` is CLIP4Clip's and decides nothing: the head is tight or loose by itself.
        """
        attention_mask, video_mask = as_rows(attention_mask), as_rows(video_mask)
        frames = self.aggregate_frames(visual_output, video_mask)
        return (self.score(sequence_output, frames, attention_mask, video_mask),)

    def score(self, sequence_output, frames, attention_mask, video_mask) -> torch.Tensor:
        """Logits (A,B) from text features and *aggregated* frames (B,V,D), with masks (A,T) and (B,V).

        exp(logit_scale) multiplies CLIP4Clip's pooled heads always, DRL's ti, wti and xti in training only (the
        evaluation of ti and wti gives values in [-1, 1]), tightTransf never.
        """
        if self.config.sim_header == "tightTransf":
            return self.cross_similarity(sequence_output, frames, video_mask)
        if self.config.sim_header in POOLED_HEADERS:
            text_vectors, video_vectors = pooled_vectors(sequence_output, frames, video_mask)
            return text_vectors @ video_vectors.T * self.clip.logit_scale.exp()
        if self.config.sim_header == "xti":
            logits = self.cross_similarity(sequence_output, frames, video_mask)
        else:
            logits = self.wti_interaction(sequence_output, frames, attention_mask, video_mask)
        return logits * self.clip.logit_scale.exp() if self.training else logits

    @property
    def score_scale(self) -> float:
        """What an evaluation's scores are divided by to be cosines; 1 for the cross encoders, which give none."""
        return self.clip.logit_scale.exp().item() if self.config.sim_header in POOLED_HEADERS else 1.0

    def wti_interaction(self, text_features, video_features, text_mask, video_mask) -> torch.Tensor:
        """(Weighted) token-wise interaction of (A,T,D) and (B,V,D) with masks (A,T), (B,V) -> (A,B) in [-1, 1]."""
        weights = self.token_weights(text_features, video_features, text_mask, video_mask)
        return token_interaction_in_blocks(
            text_features, video_features, text_mask, video_mask, *weights, self.config.wti_padding
        )

    def token_weights(self, text_features, video_features, text_mask, video_mask) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of words (A,T) and frames (B,V): wti's from the features before normalisation, ti's all alike."""
        if self.config.sim_header == "ti":
            return uniform_weights(text_mask), uniform_weights(video_mask)
        return (
            masked_softmax(self.text_weight_fc(text_features).squeeze(-1), text_mask),
            masked_softmax(self.video_weight_fc(video_features).squeeze(-1), video_mask),
        )

    def cross_similarity(self, sequence_output, frames, video_mask) -> torch.Tensor:
        """Cross encoder over [sentence vector; frames] of every pair: (A,1,D), (B,V,D), (B,V) -> (A,B)."""
        texts, videos = sequence_output.shape[0], frames.shape[0]
        pairs = torch.cat(
            [
                sequence_output.unsqueeze(1).expand(-1, videos, -1, -1),
                frames.unsqueeze(0).expand(texts, -1, -1, -1),
            ],
            dim=2,
        ).flatten(0, 1)
        pair_mask = F.pad(video_mask, (1, 0), value=1).repeat(texts, 1)  # the sentence is always there
        return self.similarity_dense(self.cross(pairs, pair_mask)).view(texts, videos)


def pooled_vectors(sentences, frames, video_mask) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors of sentences (A,1,D) -> (A,D), and of the masked means of unit frames (B,V,D) -> (B,D)."""
    mask = video_mask.unsqueeze(-1).float()
    # a video without a valid frame divides by 1 and keeps a zero vector
    mean = (F.normalize(frames, dim=-1) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return F.normalize(sentences.squeeze(1), dim=-1), F.normalize(mean, dim=-1)


def one_random_token(mask: torch.Tensor) -> torch.Tensor:
    """(N,L) mask -> (N,L) mask of one valid token of each row, every one as likely; of none where no token is valid."""
    chances = torch.rand(mask.shape, device=mask.device).masked_fill(mask == 0, -1.0)
    return F.one_hot(chances.argmax(dim=1), mask.shape[1]) * mask


def as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """(B,1,L) or (B,L) -> (B,L)."""
    return tensor.reshape(-1, tensor.shape[-1])
