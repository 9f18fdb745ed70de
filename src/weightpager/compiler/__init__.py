"""Model + tasks → bundle."""
