"""What a deployer may say: settings, model presets, deploy manifests. Imports nothing of ours."""
