"""What several test modules share: a small clone of the project, a server, a spy, a full disk."""
