"""Small pieces that every package uses: files, processes, devices, trees."""
