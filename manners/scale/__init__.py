"""The same stage functions in other processes, on this machine or a cluster: so far the rollouts of PPO, on Ray."""
