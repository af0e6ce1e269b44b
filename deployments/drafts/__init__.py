"""What clients put together before it is a task, in Redis. Neither ray nor torch."""
