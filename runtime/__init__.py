"""What a user deploys: plans, snapshots, guards, policy bundles and the real executors."""
