"""What the action plugins share; runs on the controller, in Ansible's own Python."""
