"""No transformer needed: any module whose forward takes token ids and returns `.logits` can be aligned."""

from types import SimpleNamespace

from torch import Tensor, nn
from transformers import AutoTokenizer

import preftune
from preftune.policy.loading import built_in_folder


class LSTM(nn.Module):
    """Ten lines of language model."""

    def __init__(self, vocabulary: int, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        """Logits of the next token, at each position."""
        return SimpleNamespace(logits=self.head(self.lstm(self.embed(input_ids))[0]))


tokenizer = AutoTokenizer.from_pretrained(built_in_folder())  # of the built-in world, as the pairs are
model = LSTM(len(tokenizer))
run = preftune.train(model, "sandbox", "dpo", tokenizer=tokenizer, output="runs/lstm", overwrite=True)
print(run.summary["after"]["preference_accuracy"])
