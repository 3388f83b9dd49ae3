"""A built-in world small enough to list: every response to every prompt, with its probability and its reward.

    prompt      b e a
    response    c e f a

Seven words, `a` to `g`, and an end token. A prompt is three words (343 prompts: 245 to train on, 49 to choose by, 49 to
test on). A response has at most four tokens: up to three words and the end, or four words without one; that makes
1 + 7 + 49 + 343 + 2,401 = 2,801 responses to a prompt, and a model over this vocabulary can write nothing else. So the
mean reward of a policy, its divergence from the reference and the best that any policy can do are sums, not estimates.

    import preftune
    from preftune.sandbox import listed

    run = preftune.train(
        listed.reference_folder(),
        listed.rows(listed.bradley_terry(), 5000),
        {"name": "dpo", "beta": 0.5},
        held_out=listed.rows(listed.bradley_terry(), 500, prompts=listed.VALIDATION, seed=1),
        config={"data": {"rendering": listed.RENDERING}},
        optim={"learning_rate": 2e-3},
        evaluate={"samples": 0, "max_new_tokens": listed.LONGEST},
    )
    print(listed.evaluate(run.model, listed.TEST))  # exact reward, components, KL, regret

`all_logps(lm)` has the log-probability of all responses to all prompts, `rewards()` their rewards, `frontier()` the
best there is; `ascend(lm, beta)` climbs along the exact policy gradient, and `dpo_population(source, beta)` is where
DPO leads with all pairs. For online learning, the judge is `preftune.sandbox.listed:true_reward_judge`, and
`max_new_tokens` is 4.

The reward has three components in tension. The words that help most, `f` and `g`, are those that may harm; `e`, a
caveat, takes the harm from the word that follows it, and costs help. Honesty says the first word again, and lets
no harmful word follow a claim, `c`. `rule` says all of it.
"""

from preftune.sandbox.listed.ascent import ascend, exact_objective
from preftune.sandbox.listed.language import (
    END,
    LONGEST,
    PROMPTS,
    RENDERING,
    RESPONSES,
    TEST,
    TRAIN,
    VALIDATION,
    all_logps,
    index_of,
    reference_folder,
    reference_model,
    response_ids,
    tokenizer,
    words_of,
)
from preftune.sandbox.listed.population import dpo_population, ipo_population
from preftune.sandbox.listed.rule import COMPONENTS, WORDS
from preftune.sandbox.listed.sources import (
    Source,
    bradley_terry,
    cyclic,
    demonstrations,
    deterministic,
    probabilities,
    rows,
    two_annotators,
)
from preftune.sandbox.listed.worth import (
    Worth,
    all_components,
    components,
    evaluate,
    frontier,
    reference_logps,
    rewards,
    true_reward,
    true_reward_judge,
    worth,
)

__all__ = [
    "COMPONENTS",
    "END",
    "LONGEST",
    "PROMPTS",
    "RENDERING",
    "RESPONSES",
    "TEST",
    "TRAIN",
    "VALIDATION",
    "WORDS",
    "Source",
    "Worth",
    "all_components",
    "all_logps",
    "ascend",
    "bradley_terry",
    "components",
    "cyclic",
    "demonstrations",
    "deterministic",
    "dpo_population",
    "evaluate",
    "exact_objective",
    "frontier",
    "index_of",
    "ipo_population",
    "probabilities",
    "reference_folder",
    "reference_logps",
    "reference_model",
    "response_ids",
    "rewards",
    "rows",
    "tokenizer",
    "true_reward",
    "true_reward_judge",
    "two_annotators",
    "words_of",
    "worth",
]
