"""CLIP4Clip: CLIP's towers, a temporal aggregation of frames, and a head that scores texts against videos.

    model = CLIP4Clip.from_pretrained("cross-base", state_dict=None, task_config=args)
    loss = model(input_ids, segment_ids, input_mask, video, video_mask)   # in training

Shapes: A texts of T words, B videos of V frames, joint width D; in training A = B = the global batch G.
The heads are in modules/heads.py; their layers are attributes of the model.
"""

import logging
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from modules.clip_weights import OPENAI_MEAN, OPENAI_STD, describe_clip, read_clip_weights
from modules.configuration import CLIP4ClipConfig, check_cross_model
from modules.distributed import gather_features, get_rank, get_world_size
from modules.initialization import WeightReport, check_clip_weights, load_weights
from modules.losses import CrossEn, decorrelation_loss
from modules.module_clip import CLIP
from modules.module_cross import TransformerClip
from modules.state_dicts import clip_part, errors_naming, without_wrappers
from modules.token_interaction import token_interaction_in_blocks

logger = logging.getLogger(__name__)


class CLIP4Clip(nn.Module):
    """CLIP (`clip`), the layers of the chosen head, and the loss."""

    def __init__(self, config: CLIP4ClipConfig, clip: CLIP, mean=OPENAI_MEAN, std=OPENAI_STD):
        super().__init__()
        self.config = config
        self.head = config.head
        self.clip = clip
        self.weight_report = WeightReport()
        config.check_lengths(clip.context_length)
        self.head.add_layers(self, clip.context_length)
        self._initialize_layers()
        self.loss_fct = CrossEn()
        self.frame_statistics = tuple(zip(mean, std, strict=True))
        self.autocast_dtype: torch.dtype | None = None

    @classmethod
    def from_pretrained(
        cls, cross_model_name: str, state_dict=None, cache_dir: str | None = None, task_config=None, origin: str = ""
    ) -> "CLIP4Clip":
        """Build the model for `task_config` (a namespace of flags) with the weights of `state_dict`.

        CLIP's weights come from `pretrained_clip_name` if `state_dict` does not hold them. `.weight_report` and the log
        list the loaded, the newly initialized and the unexpected keys. `cross_model_name` is CLIP4Clip's "cross-base";
        it names no file here, since all sizes come from the weights. `origin` names `state_dict` in errors.

        Raises: ValueError for an unknown name, a shape that differs, a missing weight or one that is not finite;
        FileNotFoundError for a missing file.
        """
        check_cross_model(cross_model_name)
        config = CLIP4ClipConfig.from_namespace(task_config)
        with errors_naming(origin):
            weights = without_wrappers(state_dict or {})
        clip_weights = clip_part(weights)
        source = describe_clip(config.pretrained_clip_name, is_needed=not clip_weights)
        if source.context_length is not None:  # a file's is known only after reading it
            config.check_lengths(source.context_length)
        if not clip_weights:
            clip_weights = read_clip_weights(source, cache_dir)
            weights.update({"clip." + key: value for key, value in clip_weights.items()})
            origin = origin or f"--pretrained_clip_name {source.name}"
        elif source.is_missing:
            logger.info("--pretrained_clip_name %s is missing, and not needed: the checkpoint has CLIP", source.name)
        with errors_naming(origin):
            check_clip_weights(clip_weights)  # before memory of the sizes that they declare is allocated
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
        # not stored in the weights: an evaluation needs the training's --pretrained_clip_name for them
        logger.info("activation %s, frames normalised by mean %s, std %s", source.activation, source.mean, source.std)
        return model

    def add_aggregation_layers(self, positions: int) -> None:
        """Add the layers of the temporal aggregation, with `positions` learned positions."""
        width, aggregation = self.clip.embed_dim, self.config.aggregation
        if aggregation != "none":
            # CLIP4Clip's seqLSTM checkpoints carry the positions too, though only seqTransf reads them
            self.frame_position_embeddings = nn.Embedding(positions, width)
            self.frame_position_embeddings.requires_grad_(aggregation == "seqTransf")
        if aggregation == "seqTransf":
            self.transformerClip = TransformerClip(width, self.config.cross_num_hidden_layers)
        if aggregation == "seqLSTM":
            self.lstm_visual = nn.LSTM(width, width, batch_first=True)

    def _initialize_layers(self) -> None:
        """Initialize cross encoder, frame Transformer and positions as BERT does: normal with std 0.02, biases 0."""
        parts = [
            module
            for name in ("cross", "similarity_dense", "frame_position_embeddings", "transformerClip")
            if (module := getattr(self, name, None)) is not None
        ]
        for layer in (layer for part in parts for layer in part.modules()):
            if isinstance(layer, (nn.Linear, nn.Embedding)):
                nn.init.normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)

    @property
    def input_resolution(self) -> int:
        """Side of the square frames that the CLIP takes, in pixels."""
        return self.clip.visual.input_resolution

    def forward(self, input_ids, token_type_ids, attention_mask, video, video_mask) -> torch.Tensor | None:
        """Return the loss of the global batch in training (`loss_of_features`), None in evaluation.

        input_ids, attention_mask (G/R,T), video (G/R,V,3,H,W) uint8 or normalised float, video_mask (G/R,V), each with
        or without the pair axis of size 1; `token_type_ids` keeps CLIP4Clip's batch order and is not read.
        """
        if not self.training:
            return None
        features = self.encode(input_ids, token_type_ids, attention_mask, video, video_mask)
        return self.loss_of_features(*features, drop_pair_axis(attention_mask), drop_pair_axis(video_mask))

    def encode(self, input_ids, token_type_ids, attention_mask, video, video_mask) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features of texts, (A,1,D) or (A,T,D), and aggregated frames (B,V,D); rows are independent."""
        sequence_output, visual_output = self.get_sequence_visual_output(
            input_ids, token_type_ids, attention_mask, video, video_mask
        )
        return sequence_output, self.aggregate_frames(visual_output, video_mask)

    def loss_of_features(self, sequence_output, frames, attention_mask, video_mask) -> torch.Tensor:
        """Return the training loss from this rank's features, as `encode` returns them, and masks (G/R,T), (G/R,V).

        With the published gather every rank returns the loss of the global batch, or of its own pairs if the head's
        negatives are local. With the exact gather a rank returns its share, and the mean over the ranks is that loss.
        """
        local_batch = (sequence_output, frames, attention_mask, video_mask)
        global_batch = local_batch
        if self.config.cdcr:
            global_batch += self.head.cdcr_masks(attention_mask, video_mask, self.config.cdcr)
        if not self.config.has_local_negatives:
            global_batch = gather_features(global_batch, reduce=self.config.has_exact_gather)
        if self.config.has_exact_gather and get_world_size() > 1:
            loss = self.local_loss(local_batch, global_batch[:4])
        else:
            logits = self.score(*global_batch[:4])
            loss = self.contrastive_loss(logits, logits)
        if self.config.cdcr:
            correlation = self.head.channel_correlation(self, *global_batch[:2], *global_batch[4:])
            alphas = self.config.cdcr_alpha1, self.config.cdcr_alpha2
            loss = loss + self.config.cdcr_lambda * decorrelation_loss(correlation, *alphas)
        return loss

    def local_loss(self, local_batch: tuple, global_batch: tuple) -> torch.Tensor:
        """Return the loss of this rank's texts against all videos, and of its videos against all texts.

        Both batches are features and masks in the order of `score`; the global one comes from a reducing gather. The
        mean of the loss over the ranks, and DDP's gradient, are those of one process on the global batch. A rank scores
        2 G^2 / R pairs instead of G^2, which is what makes a cross encoder affordable.
        """
        texts, frames, text_mask, video_mask = local_batch
        all_texts, all_frames, all_text_mask, all_video_mask = global_batch
        text_rows = self.score(texts, all_frames, text_mask, all_video_mask)
        video_columns = self.score(all_texts, frames, all_text_mask, video_mask)
        return self.contrastive_loss(text_rows, video_columns, first_column=get_rank() * texts.shape[0])

    def contrastive_loss(self, text_rows, video_columns, first_column: int = 0) -> torch.Tensor:
        """Return the symmetric cross entropy of the logits (N,G) of N texts and (G,N) of N videos.

        The true pairs are on the diagonal that starts at `first_column` of the rows, and of the transposed columns.
        """
        return (self.loss_fct(text_rows, first_column) + self.loss_fct(video_columns.T, first_column)) / 2

    def get_sequence_output(self, input_ids, token_type_ids=None, attention_mask=None, shaped=False) -> torch.Tensor:
        """Encode ids (A,T) as float32 sentence vectors (A,1,D), or as tokens (A,T,D) for the token heads.

        Ids that `trim_padding` shortened give tokens padded with zeros to the mask's T, so that all batches and ranks
        have the same shape. `token_type_ids` and `shaped` are CLIP4Clip's and not read: shapes show a pair axis.
        """
        input_ids = drop_pair_axis(input_ids)
        with self.encoder_precision():
            if not self.head.encodes_tokens:
                return self.clip.encode_text(input_ids).float().unsqueeze(1)
            words = self.clip.encode_words(input_ids).float()
        missing = 0 if attention_mask is None else attention_mask.shape[-1] - input_ids.shape[-1]
        return F.pad(words, (0, 0, 0, missing)) if missing else words

    def get_visual_output(self, video, video_mask, shaped=False, video_frame=-1) -> torch.Tensor:
        """Encode frames as float32 vectors (B,V,D), before temporal aggregation.

        `video` is (B,V,3,H,W), with axes of size 1 in between or flattened to (B V,3,H,W); `video_mask` gives B and V.
        """
        rows, length = drop_pair_axis(video_mask).shape
        frames = video.reshape(-1, *video.shape[-3:])
        with self.encoder_precision():
            vectors = self.clip.encode_image(self.normalize_frames(frames), length)
        return vectors.float().view(rows, length, vectors.shape[-1])

    def get_sequence_visual_output(
        self, input_ids, token_type_ids, attention_mask, video, video_mask, shaped=False, video_frame=-1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `get_sequence_output` and `get_visual_output` of a batch."""
        return (
            self.get_sequence_output(input_ids, token_type_ids, attention_mask, shaped),
            self.get_visual_output(video, video_mask, shaped, video_frame),
        )

    def encoder_precision(self):
        """Return the context in which towers and aggregation compute: autocast to `autocast_dtype`, if that is set.

        The dtype is the model's, so that evaluation encodes as training did; scores and loss stay in float32.
        """
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.clip.logit_scale.device.type, dtype=self.autocast_dtype)

    def normalize_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Normalise uint8 pixels (N,3,H,W) by CLIP's statistics; float input is taken as already normalised."""
        if frames.is_floating_point():
            return frames
        normalized = torch.empty(frames.shape, dtype=self.clip.dtype, device=frames.device)
        # Python numbers, channel by channel: DDP would broadcast buffers over the ranks in every step
        for channel, (mean, std) in enumerate(self.frame_statistics):
            # (pixel / 255 - mean) / std in one pass over the pixels
            offset = torch.tensor(-mean / std)
            torch.add(offset, frames[:, channel], alpha=1 / (255 * std), out=normalized[:, channel])
        return normalized

    def aggregate_frames(self, visual_output: torch.Tensor, video_mask: torch.Tensor) -> torch.Tensor:
        """Aggregate frames over time with a residual: (B,V,D) -> (B,V,D); the identity for "none"."""
        video_mask = drop_pair_axis(video_mask)
        with self.encoder_precision():
            if self.config.aggregation == "seqTransf":
                positions = self.frame_position_embeddings.weight[: visual_output.shape[1]]
                return visual_output + self.transformerClip(visual_output + positions, video_mask)
            if self.config.aggregation == "seqLSTM":
                # valid frames come first, so that no padding reaches their states; padding keeps its input
                return visual_output + self.lstm_visual(visual_output)[0] * video_mask.unsqueeze(-1)
        return visual_output

    def get_similarity_logits(
        self, sequence_output, visual_output, attention_mask, video_mask, shaped=False, loose_type=None
    ) -> tuple[torch.Tensor]:
        """Aggregate the frames and score every text against every video; the first element is (A,B).

        `loose_type` is CLIP4Clip's and not read: the head determines whether it is tight or loose.
        """
        attention_mask, video_mask = drop_pair_axis(attention_mask), drop_pair_axis(video_mask)
        frames = self.aggregate_frames(visual_output, video_mask)
        return (self.score(sequence_output, frames, attention_mask, video_mask),)

    def score(self, sequence_output, frames, attention_mask, video_mask) -> torch.Tensor:
        """Return logits (A,B) of text features and *aggregated* frames (B,V,D), with masks (A,T) and (B,V).

        The head determines whether exp(logit_scale) multiplies its similarity in training and in evaluation.
        """
        similarity = self.head.similarity(self, sequence_output, frames, attention_mask, video_mask)
        is_scaled = self.head.is_scaled_in_training if self.training else self.head.is_scaled_in_evaluation
        return similarity * self.clip.logit_scale.exp() if is_scaled else similarity

    @property
    def score_scale(self) -> float:
        """Factor of the head's similarity in the scores of an evaluation."""
        return self.clip.logit_scale.exp().item() if self.head.is_scaled_in_evaluation else 1.0

    def wti_interaction(self, text_features, video_features, text_mask, video_mask) -> torch.Tensor:
        """Score tokens (A,T,D) and (B,V,D), masks (A,T) and (B,V), by (weighted) token-wise interaction: (A,B)."""
        weights = self.head.token_weights(self, text_features, video_features, text_mask, video_mask)
        return token_interaction_in_blocks(
            text_features, video_features, text_mask, video_mask, *weights, self.config.wti_padding
        )


def drop_pair_axis(tensor: torch.Tensor) -> torch.Tensor:
    """Return (B,L) of (B,1,L) or (B,L)."""
    return tensor.reshape(-1, tensor.shape[-1])
