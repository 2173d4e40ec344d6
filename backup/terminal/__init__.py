"""What an admin types and sees. Only main imports it."""
