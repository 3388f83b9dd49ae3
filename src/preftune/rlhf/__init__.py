"""Learning from the policy's own answers: rollouts, rewards, rounds, and the value network of policy gradients."""
