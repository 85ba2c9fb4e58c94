"""Put a bundle and the runner on a device over adb, check it, run it there, bring the edits home."""
