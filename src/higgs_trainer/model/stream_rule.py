"""Decide where the stream tokens of a generated clip may be."""

import torch
from torch import Tensor
from transformers import InfNanRemoveLogitsProcessor


class StreamTokensInPlace(InfNanRemoveLogitsProcessor):
    """Allow begin of stream only before a clip, and let only codebook 0 end it; the others follow it one by one.

    transformers ends a clip as soon as *any* codebook draws end of stream, and takes begin of stream anywhere. A model
    trained on little data sometimes draws one of them by mistake, which would cut a clip in the middle of a word.

    On Higgs Audio, transformers accepts only four classes of logits processors, so that none mixes the codebooks. This
    one does not, and derives from one of the four.
    """

    def __init__(
        self, *, num_codebooks: int, begin_id: int, end_id: int, delay_token: int, done_token: int
    ) -> None:
        self.num_codebooks = num_codebooks
        self.begin_id = begin_id
        self.end_id = end_id
        self.ending_tokens = (delay_token, done_token)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Forbid begin of stream where a code may be, and end of stream in codebooks 1 and up while a clip is speaking.

        Args:
            input_ids: text tokens (B, T). The last one tells whether a clip is speaking, ending, or finished.
            scores: logits (B * K, C), changed in place; the delay pattern's processor, which transformers runs first,
                has made a copy, in which a cell that must be a stream token has no other logit than that token's.
        """
        may_be_code_N = scores[:, 0] > -torch.inf
        scores[:, self.begin_id].masked_fill_(may_be_code_N, -torch.inf)
        delay_token, done_token = self.ending_tokens
        last_B = input_ids[:, -1]
        is_speaking_B = (last_B != delay_token) & (last_B != done_token)
        ends_BK = scores.view(len(input_ids), self.num_codebooks, -1)[:, 1:, self.end_id]
        ends_BK.masked_fill_(is_speaking_B[:, None].to(scores.device), -torch.inf)
        return scores
