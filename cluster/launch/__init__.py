"""Ways to start a recipe on a cluster: a Ray job, a RayJob of KubeRay, a batch job of Slurm. One file each."""
